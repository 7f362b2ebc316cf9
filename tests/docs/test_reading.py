"""Pages read on a code host as on the site: narrow tables, pictures that say what they show, links that lead on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plotting import ARMS, DARK, LIGHT, as_svg, color_of, colors, new_figure
from tests.docs.test_code_blocks import FENCE, ROOT

AT_THE_TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in AT_THE_TOP), *sorted((ROOT / "docs").rglob("*.md"))]
COLUMNS = 5
RULE = re.compile(r"^\|(?:\s*:?-+:?\s*\|)+$", re.M)
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<file>[^)\s]+)\)|<img [^>]*?alt=\"(?P<html>[^\"]*)\"")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")
WHITE, NIGHT = "#ffffff", "#0d1117"  # of a code host


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_tables_are_narrow(page):
    wide = [rule for rule in RULE.findall(prose(page)) if rule.count("|") - 1 > COLUMNS]
    assert wide == [], f"{page}: at most {COLUMNS} columns; put the details into a second table"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_pictures_say_what_they_show(page):
    text = prose(page)
    found = [image["alt"] or image["html"] or "" for image in IMAGE.finditer(text)]
    assert len(found) == text.count("![") + text.count("<img "), f"{page}: a picture without alt text"
    for alt in found:
        assert len(alt) >= 20 and " " in alt, f"{page}: {alt!r} does not say what the picture shows"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_what_is_there(page):
    for target in (link["target"] for link in LINK.finditer(prose(page))):
        name, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: {target}"


def anchors(page: Path) -> set[str]:
    """Headings as a code host and the site both name them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def luminance(color: str) -> float:
    """Of WCAG 2, from 0 for black to 1 for white."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(("theme", "page"), [(LIGHT, WHITE), (DARK, NIGHT)], ids=["light", "dark"])
def test_lines_and_words_stand_out(theme, page):
    low = {color for color in colors(theme) if contrast(color, page) < 4.5}
    assert low == {theme.grid}


def test_every_arm_has_a_colour_of_its_own():
    for theme in (LIGHT, DARK):
        assert len({color_of(arm, theme) for arm in ARMS}) == len(ARMS)


def test_a_picture_follows_the_setting_of_its_reader():
    figure, axes = new_figure("title")
    axes.plot([1, 2], [3, 4], color=color_of("Muon", LIGHT))
    svg = as_svg(figure)
    style, drawing = svg.split("</style>", 1)
    assert re.findall(r"(?:fill|stroke): #\w+", drawing) == [], "a colour that does not change"
    muon = 2 + ARMS.index("Muon")
    assert f"stroke: var(--c{muon})" in drawing
    by_day, by_night = style.split("prefers-color-scheme: dark")
    assert f"--c{muon}: {color_of('Muon', LIGHT)}" in by_day and f"--c{muon}: {color_of('Muon', DARK)}" in by_night


def test_pictures_of_pages_have_no_white_background():
    """A drawing follows the reader's setting or brings a background of its own; of photographs there is one."""
    for page in PAGES:
        for image in IMAGE.finditer(prose(page)):
            file = image["file"] or ""
            assert not file.endswith(".png") or file == "report/layers.png", f"{page}: {file}"
