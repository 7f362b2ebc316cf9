"""The code of docs/hub.md that needs a hub, on this one."""

from adafisher_hf.config.adafisher import CONFIG_NAME
from tests.docs.test_code_blocks import ROOT, code_blocks
from tests.hub import actions


def test_the_page(hub, owner, tmp_path):
    blocks = code_blocks(ROOT / "docs/hub.md")
    codes = [block.code.replace("USER/", "owner/") for block in blocks if "needs the Hub" in (block.reason or "")]
    assert len(codes) == 3
    names = owner(actions.run_page, tmp_path, codes)
    assert names["optim_args"] == "config=owner/my-model,update_interval=10"
    assert CONFIG_NAME in hub.files("owner/my-model")
    assert hub.repos["owner/my-config"].private
    assert names["config"].structure == "kronecker"
    assert names["config"].update_interval == 5
