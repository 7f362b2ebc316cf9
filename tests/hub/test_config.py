"""AdaFisherConfig to and from a hub that speaks the protocol."""

import inspect
import json

import pytest
from huggingface_hub import constants
from transformers.utils.hub import PushToHubMixin

from adafisher_hf import AdaFisherConfig
from adafisher_hf.config.adafisher import CONFIG_NAME
from tests.hub import actions
from tests.hub.conftest import TOKEN

KNOBS = {"structure": "kronecker", "damping": 1e-07, "gamma": 0.1 + 0.2}


def downloads(requests):
    return [request for request in requests if request.startswith("GET") and CONFIG_NAME in request]


def test_a_stranger_loads_what_the_owner_pushed(hub, owner, stranger, repo):
    commit = owner(actions.push, repo, KNOBS)
    assert commit == f"{hub.endpoint}/{repo}/commit/{commit.oid}"
    assert hub.repos[repo].refs == {"main": commit.oid}
    assert stranger(actions.load, repo) == AdaFisherConfig(**KNOBS)


def test_push_takes_the_arguments_of_transformers_mixin(hub, owner, stranger, repo):
    def arguments(function):
        return list(inspect.signature(function).parameters.values())[1:]

    ours, theirs = arguments(AdaFisherConfig.push_to_hub), arguments(PushToHubMixin.push_to_hub)
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]

    options = {"commit_message": "Mine", "commit_description": "why", "private": True, "tags": ["adafisher"]}
    owner(actions.push, repo, KNOBS, **options, token=TOKEN, max_shard_size="1GB")
    assert hub.repos[repo].private
    assert hub.repos[repo].history() == ["Mine"]
    assert b"- adafisher\n" in hub.files(repo)["README.md"]
    assert json.loads(hub.files(repo)[CONFIG_NAME])["damping"] == 1e-07


def test_save_pushes_to_a_repository_named_like_the_folder(hub, owner, tmp_path):
    folder = tmp_path / "config-of-a-folder"
    owner(AdaFisherConfig().save_pretrained, folder, push_to_hub=True)
    assert hub.files("owner/config-of-a-folder")[CONFIG_NAME] == (folder / CONFIG_NAME).read_bytes()


def test_the_same_again_is_no_commit_and_the_card_is_kept(hub, owner, repo):
    owner(actions.push, repo)
    first = hub.repos[repo].refs["main"]
    assert owner(actions.push, repo).oid == first
    owner(actions.push, repo, {"gamma": 0.5}, tags=["mine"])
    assert hub.repos[repo].history() == ["Upload config", "Upload config"]
    before, after = (hub.files(repo, revision)["README.md"].decode() for revision in (first, "main"))
    assert after.replace("- mine\n", "") == before.replace("tags: []\n", "tags:\n")


def test_branches_commits_and_pull_requests(hub, owner, stranger, repo, tmp_path):
    first = owner(actions.push, repo, {"beta": 0.5})
    owner(actions.push, repo, {"beta": 0.6})
    owner(actions.push, repo, {"beta": 0.7}, revision="try/this")
    pull_request = owner(actions.push, repo, {"beta": 0.8}, create_pr=True)
    assert pull_request.pr_revision == "refs/pr/1"
    expected = {None: 0.6, "main": 0.6, first.oid: 0.5, "try/this": 0.7, "refs/pr/1": 0.8}
    for revision, beta in expected.items():
        assert stranger(actions.load, repo, revision=revision).beta == beta
        place = f"{repo}@{revision}" if revision else repo
        assert stranger(actions.load_by_arguments, tmp_path, f"config={place},gamma=0.5")["beta"] == beta


def test_a_subfolder_and_a_checkpoint(hub, owner, stranger, repo, tmp_path):
    owner(actions.train, tmp_path, push_to_hub=True, hub_model_id=repo, save_strategy="steps", save_steps=4,
          hub_strategy="checkpoint")  # fmt: skip
    assert stranger(actions.load, repo, subfolder="last-checkpoint").update_interval == 2


# the cache


def test_it_is_downloaded_once(hub, owner, stranger, repo, tmp_path):
    owner(actions.push, repo, KNOBS)
    with hub.watched() as requests:
        arguments = stranger(actions.load_by_arguments, tmp_path, f"config={repo}")
    assert arguments["structure"] == "kronecker"
    assert len(downloads(requests)) == 1
    with hub.watched() as requests:
        stranger(actions.load, repo)
    assert downloads(requests) == []
    with hub.watched() as requests:
        stranger(actions.load, repo, force_download=True)
    assert len(downloads(requests)) == 1
    owner(actions.push, repo, {"beta": 0.5})
    assert stranger(actions.load, repo).beta == 0.5


def test_a_commit_in_the_cache_is_not_asked_for(hub, owner, stranger, repo):
    commit = owner(actions.push, repo, KNOBS)
    stranger(actions.load, repo, revision=commit.oid)
    with hub.watched() as requests:
        stranger(actions.load, repo, revision=commit.oid)
    assert requests == []


def test_offline_and_from_the_cache(hub, owner, stranger, repo, tmp_path, monkeypatch):
    owner(actions.push, repo, KNOBS)
    stranger(actions.load, repo)
    assert constants.HF_HUB_OFFLINE, "this process is offline"
    assert AdaFisherConfig.from_pretrained(repo, cache_dir=stranger.cache) == AdaFisherConfig(**KNOBS)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(stranger.cache))
    assert AdaFisherConfig.from_optim_args(f"config={repo}") == AdaFisherConfig(**KNOBS)
    with hub.watched() as requests:
        assert stranger(actions.load, repo, local_files_only=True) == AdaFisherConfig(**KNOBS)
        assert stranger(actions.load, repo, cache_dir=stranger.cache, local_files_only=True).damping == 1e-07
    assert requests == []


@pytest.mark.parametrize("what", [503, "cut"])
def test_the_cache_serves_while_the_hub_is_down(hub, owner, stranger, repo, tmp_path, what):
    owner(actions.push, repo, KNOBS)
    stranger(actions.load, repo)
    with hub.broken(".*", ".*", what):
        assert stranger(actions.load_by_arguments, tmp_path, f"config={repo}")["structure"] == "kronecker"


def test_a_cache_of_ones_own(owner, stranger, repo, tmp_path):
    owner(actions.push, repo)
    stranger(actions.load, repo, cache_dir=tmp_path)
    assert list(tmp_path.rglob(CONFIG_NAME))
    assert not list(stranger.cache.rglob(CONFIG_NAME))


def test_a_cut_download_leaves_no_half_of_a_file(hub, owner, stranger, repo):
    owner(actions.push, repo, KNOBS)
    with hub.broken("GET", CONFIG_NAME, "cut") as fault, pytest.raises(ConnectionError, match="cannot be reached"):
        stranger(actions.load, repo)
    assert fault.times < 1_000
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        stranger(actions.load, repo, local_files_only=True)
    assert stranger(actions.load, repo) == AdaFisherConfig(**KNOBS)


def test_a_repository_that_has_moved(hub, owner, stranger, repo):
    owner(actions.push, repo, KNOBS)
    hub.moved["owner/old-name"] = repo
    assert stranger(actions.load, "owner/old-name") == AdaFisherConfig(**KNOBS)


def test_the_token_of_the_arguments_opens_a_private_repository(owner, stranger, repo, tmp_path):
    owner(actions.push, repo, {"gamma": 0.5}, private=True)
    with pytest.raises(FileNotFoundError, match="or it is private"):
        stranger(actions.load_by_arguments, tmp_path, f"config={repo}")
    assert stranger(actions.load_by_arguments, tmp_path, f"config={repo}", hub_token=TOKEN)["gamma"] == 0.5
    # What transformers writes in its place, into JSON files, is none.
    stranger.forget()
    with pytest.raises(FileNotFoundError, match="or it is private"):
        stranger(actions.load_by_arguments, tmp_path, f"config={repo}", hub_token="<HUB_TOKEN>")


def test_a_private_repository_needs_a_token(owner, stranger, repo):
    owner(actions.push, repo, KNOBS, private=True)
    with pytest.raises(FileNotFoundError, match=r"or it is private: check the name, log in \(hf auth login"):
        stranger(actions.load, repo)
    assert owner(actions.load, repo, force_download=True) == AdaFisherConfig(**KNOBS)
    assert stranger(actions.load, repo, token=TOKEN) == AdaFisherConfig(**KNOBS)


# errors before the training starts


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("owner/nothing", FileNotFoundError, "'owner/nothing': there is no such folder here and no such repository"),
        ("{repo}@v9", FileNotFoundError, "it has no branch, tag or commit 'v9'"),
        ("owner/a--b", FileNotFoundError, "'owner/a--b': there is no such folder here and no such repository"),
    ],
)
def test_what_is_not_there(owner, stranger, repo, tmp_path, place, error, message):
    owner(actions.push, repo)
    with pytest.raises(error, match=message):
        stranger(actions.make_arguments, tmp_path, f"config={place.format(repo=repo)}")


def test_a_repository_without_a_config(owner, stranger, repo):
    owner(actions.push, repo)
    with pytest.raises(FileNotFoundError, match=f"has no {CONFIG_NAME} there: push one with AdaFisherConfig.push_to_"):
        stranger(actions.load, repo, subfolder="elsewhere")


@pytest.mark.parametrize("what", [500, "cut"])
def test_a_hub_that_is_down(hub, owner, stranger, repo, tmp_path, what):
    owner(actions.push, repo)
    with (
        hub.broken(".*", ".*", what),
        pytest.raises(ConnectionError, match=f"{hub.endpoint} cannot be reached and the file is not in the cache"),
    ):
        stranger(actions.make_arguments, tmp_path, f"config={repo}")


def test_force_download_needs_the_hub(hub, owner, stranger, repo):
    owner(actions.push, repo)
    stranger(actions.load, repo)
    for what in (503, "cut"):
        with (
            hub.broken(".*", ".*", what),
            pytest.raises(ConnectionError, match=f"force_download needs {hub.endpoint}, which cannot be reached"),
        ):
            stranger(actions.load, repo, force_download=True)
    assert stranger(actions.load, repo) == AdaFisherConfig()


def test_a_gated_repository(hub, owner, stranger, repo):
    owner(actions.push, repo)
    hub.repos[repo].gated = True
    with pytest.raises(PermissionError, match="the repository is gated: ask for access on its page and log in"):
        stranger(actions.load, repo)


def test_a_bad_token(owner, stranger, repo):
    owner(actions.push, repo)
    with pytest.raises(PermissionError, match="the Hub refused the token: log in"):
        stranger(actions.load, repo, token="hf_wrong")


def test_a_file_that_is_no_config_is_named(hub, owner, stranger, repo, tmp_path):
    owner(actions.push, repo)
    found = hub.repos[repo]
    commit = found.find("main")
    commit.files[CONFIG_NAME] = type(commit.files[CONFIG_NAME])(b'{"gamma": "high"}')
    with pytest.raises(TypeError, match=f"{CONFIG_NAME}: gamma must be a number"):
        stranger(actions.make_arguments, tmp_path, f"config={repo}")
