"""Uploads that fail: one error that says what to do, nothing lost here or there, and a second push completes."""

import json

import pytest

from adafisher_hf.config.adafisher import CONFIG_NAME
from tests.hub import actions

WEIGHTS = "model.safetensors"
COMMIT, STORAGE = "/commit/", "^/storage/"


def settings(repo, **more):
    return {"push_to_hub": True, "hub_model_id": repo, **more}


def local_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# a config: one small file


def test_a_bad_token_makes_nothing(hub, owner, repo):
    with pytest.raises(PermissionError, match=r"not pushed to .*: the Hub refused the token \(HTTP 401\): log in"):
        owner(actions.push, repo, token="hf_wrong")
    assert repo not in hub.repos
    owner(actions.push, repo)
    assert CONFIG_NAME in hub.files(repo)


def test_somebody_elses_repository(hub, owner):
    with pytest.raises(PermissionError, match=r"HTTP 403.* with a token that may write there"):
        owner(actions.push, "somebody/model")
    assert "somebody/model" not in hub.repos


def test_an_error_of_the_server_that_passes_is_not_seen(hub, owner, repo):
    with hub.broken("POST", "/preupload/", 500, times=2) as fault:
        owner(actions.push, repo)
    assert fault.times == 0
    assert hub.repos[repo].history() == ["Upload config"]


def test_an_error_of_the_server_that_stays(hub, owner, repo):
    message = rf"{hub.endpoint} failed \(HfHubHTTPError: .*\). When it answers, call push_to_hub again"
    with hub.broken("POST", COMMIT, 500), pytest.raises(ConnectionError, match=message):
        owner(actions.push, repo)
    assert hub.files(repo) == {}
    owner(actions.push, repo)
    assert hub.repos[repo].history() == ["Upload config"]


@pytest.mark.parametrize(("what", "made"), [("cut", []), ("lost", ["Upload config"])])
def test_a_connection_that_ends_in_the_commit(hub, owner, repo, what, made):
    with hub.broken("POST", COMMIT, what), pytest.raises(ConnectionError, match="When it answers, call push_to_hub"):
        owner(actions.push, repo)
    assert hub.repos[repo].history() == made
    owner(actions.push, repo)
    assert hub.repos[repo].history() == ["Upload config"]
    assert json.loads(hub.files(repo)[CONFIG_NAME])["mode"] == "calibrated"


# a run: with weights, which take the way of large files


def test_an_upload_that_is_cut_once_goes_on(hub, owner, repo, tmp_path):
    with hub.broken("PUT", STORAGE, "cut", times=1) as fault:
        owner(actions.train, tmp_path, finish=True, **settings(repo))
    assert fault.times == 0
    assert hub.files(repo) == local_files(tmp_path)


@pytest.mark.parametrize(("method", "path", "what"), [("PUT", STORAGE, "cut"), ("POST", "/lfs/verify", 500)])
def test_an_upload_that_is_cut_again_and_again(hub, owner, repo, tmp_path, method, path, what):
    with hub.broken(method, path, what, times=6) as fault:  # one and five more
        message, answer = owner(actions.push_twice, tmp_path, **settings(repo))
    assert fault.times == 0
    assert message.startswith(f"ConnectionError: {tmp_path} was not pushed to the Hub, nothing in it is lost")
    assert message.endswith("call push_to_hub() again")
    assert hub.repos[repo].history() == ["End of training"]  # of the second push
    assert answer.oid == hub.repos[repo].refs["main"]
    assert hub.files(repo) == local_files(tmp_path)
    assert hub.files(repo)[WEIGHTS] == (tmp_path / WEIGHTS).read_bytes()


def test_a_branch_that_does_not_exist(hub, owner, repo, tmp_path):
    message = f"{tmp_path} was not pushed to the Hub, nothing in it is lost: the Hub refused it .*Invalid rev id: v1"
    with pytest.raises(OSError, match=f"{message}.* Correct that, then call push_to_hub"):
        owner(actions.train, tmp_path, finish=True, **settings(repo, hub_revision="v1"))


def test_a_repository_that_cannot_be_made_stops_before_the_training(hub, owner, repo, tmp_path):
    with pytest.raises(PermissionError, match="the repository for this run was not made: the Hub refused the token"):
        owner(actions.train, tmp_path, **settings(repo, hub_token="hf_wrong"))
    assert not (tmp_path / CONFIG_NAME).exists()


def test_a_push_in_the_background_that_failed_is_told(hub, owner, repo, tmp_path):
    with hub.broken("PUT", STORAGE, "cut"):
        logged = owner(
            actions.train_and_listen,
            tmp_path,
            **settings(repo, hub_strategy="every_save", save_strategy="steps", save_steps=4),
        )
    assert f"a checkpoint of {tmp_path} was not pushed to the Hub" in logged
    assert "call trainer.push_to_hub()" in logged
    assert {WEIGHTS, CONFIG_NAME} <= local_files(tmp_path).keys()
