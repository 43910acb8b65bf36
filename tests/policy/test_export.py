"""Policies that leave this place: what is pushed arrives byte for byte, and what nobody could use is not pushed."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from sgpo_lib.params import ModelParams
from sgpo_lib.policy import merge, push_to_hub
from sgpo_lib.policy.export import adapter_card

REPOSITORY = Path(__file__).parents[2]
PUSH = "import sys; from sgpo_lib.policy import push_to_hub; print(push_to_hub(sys.argv[1], 'someone/mine'))"


class Hub(ThreadingHTTPServer):
    """What of the hub's API an upload needs: small files in the commit, large ones by LFS. Keeps what it is given."""

    def __init__(self, token="hf_right", public=False):
        super().__init__(("127.0.0.1", 0), Answer)
        self.token, self.public = token, public
        self.files, self.large, self.created, self.commits = {}, {}, [], 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """Answers for `Hub`."""

    def log_message(self, *_):
        pass

    def give(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self):
        self.give({})

    def do_GET(self):
        hub = self.server
        self.give({"id": "someone/mine", "private": not hub.public, "sha": "0" * 40, "siblings": [], "tags": []})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.rpartition("/")[2]
        self.server.large[name] = content
        self.give({}, 200 if hashlib.sha256(content).hexdigest() == name else 400)

    def do_POST(self):
        hub, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {hub.token}":
            self.give({"error": "Invalid credentials in Authorization header"}, 401)
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self.give({"url": f"{hub.address}/someone/mine", "id": "someone/mine", "name": "someone/mine"})
        elif self.path == "/api/validate-yaml":
            self.give({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self.give({"files": files})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                item | {"actions": {"upload": {"href": f"{hub.address}/storage/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self.give({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.large[value["oid"]]
            hub.commits += 1
            self.give({"commitUrl": f"{hub.address}/someone/mine/commit/{'1' * 40}", "commitOid": "1" * 40})
        else:
            self.give({"error": f"not in this stand-in: {self.path}"}, 404)


@pytest.fixture
def start_hub():
    """Start stand-ins of the hub on loopback ports of their own."""
    hubs = []

    def start(**options):
        hubs.append(Hub(**options))
        threading.Thread(target=hubs[-1].serve_forever, daemon=True).start()
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.shutdown()
        hub.server_close()


@pytest.fixture
def with_token(monkeypatch, tmp_path):
    """Send this process's calls of the hub to an address, with this token; Xet, which is binary, is off."""

    def use(address, token="hf_right"):
        for name, value in {"ENDPOINT": address, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", token)

    return use


@pytest.fixture
def merged(adapter, tmp_path):
    merge(adapter, tmp_path / "merged")
    return tmp_path / "merged"


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_pushed_arrives_byte_for_byte_in_a_private_repository(start_hub, merged, tmp_path):
    hub = start_hub()
    variables = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_right", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PUSH, str(merged)],
        env=os.environ | variables | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/someone/mine/commit/{'1' * 40}"
    assert hub.files == contents(merged)
    assert "model.safetensors" in hub.files
    assert hub.commits == 1
    (made,) = hub.created
    assert (made["organization"], made["name"], made["visibility"]) == ("someone", "mine", "private")


def test_a_repository_that_is_public_is_not_taken_for_a_private_one(start_hub, with_token, merged):
    hub = start_hub(public=True)
    with_token(hub.address)
    with pytest.raises(PermissionError, match="someone/mine is on the hub already and is public"):
        push_to_hub(merged, "someone/mine")
    assert not hub.files
    push_to_hub(merged, "someone/mine", private=False)
    assert hub.files == contents(merged)


def test_a_token_that_may_not_write_and_none_are_told_apart(start_hub, with_token, merged):
    hub = start_hub()
    with_token(hub.address, "hf_wrong")
    with pytest.raises(ConnectionError, match=r"did not take someone/mine \(.*401") as refused:
        push_to_hub(merged, "someone/mine")
    assert "hf_wrong" not in str(refused.value)
    with_token(hub.address, "")
    with pytest.raises(PermissionError, match="There is no token"):
        push_to_hub(merged, "someone/mine")
    assert not hub.created
    assert not hub.files


def test_a_hub_that_is_not_there_is_said_soon(with_token, merged):
    with_token("http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"The hub at http://127\.0\.0\.1:9 does not answer"):
        push_to_hub(merged, "someone/mine")


def test_an_adapter_on_a_folder_of_this_machine_is_not_pushed(start_hub, with_token, adapter):
    hub = start_hub()
    with_token(hub.address)
    with pytest.raises(ValueError, match="nobody else could load it"):
        push_to_hub(adapter, "someone/mine")
    assert not hub.created


def test_what_is_no_policy_is_not_pushed(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no saved policy"):
        push_to_hub(tmp_path, "someone/mine")


def test_merging_into_a_folder_that_holds_something_is_refused(adapter, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        merge(adapter, tmp_path / "full")
    with pytest.raises(FileExistsError, match="not empty"):
        merge(adapter, adapter)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_merging_what_is_no_adapter_is_refused(whole, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        merge(whole, tmp_path / "merged")


def test_the_card_that_training_writes_names_the_public_base_and_the_code_for_it():
    embedded = adapter_card(ModelParams(name_or_path="smollm2-135m"))
    assert embedded.startswith("---\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\nlibrary_name: peft\n")
    assert 'unpack("smollm2-135m")' in embedded
    hub = adapter_card(ModelParams(name_or_path="someone/base", revision="abc"))
    assert 'from_pretrained("someone/base", revision="abc")' in hub
    folder = adapter_card(ModelParams(name_or_path="/models/base"))
    assert folder.startswith("---\nlibrary_name: peft\n")
