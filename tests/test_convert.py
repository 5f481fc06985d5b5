"""`ostrack-fast convert`, and weights found in folders and on a Hub."""

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from ostrack_fast import OSTrack
from ostrack_fast.cli import app
from ostrack_fast.config import PRESETS, ModelConfig
from ostrack_fast.model import build_ostrack
from ostrack_fast.model.checkpoint import find_weights, read_notes, save_weights
from ostrack_fast.model.hub import short_name
from ostrack_fast.model.saving import save_torch

SMALL = ModelConfig(template_size=32, search_size=64, embed_dim=16, depth=1, num_heads=2, head_channels=8)


def run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_weights(build_ostrack(SMALL).state_dict(), SMALL, path, recipe="r.yaml", licence="free")
    return path


def state_of(path):
    return OSTrack.from_pretrained(path).state_dict()


def test_there_and_back(weights, tmp_path):
    there, back = tmp_path / "there.pth.tar", tmp_path / "back.safetensors"
    assert run(weights, there).exit_code == 0
    done = run(there, back)
    assert done.exit_code == 0 and "recipe r.yaml" in done.output
    assert back.read_bytes() == weights.read_bytes()
    assert OSTrack.from_pretrained(there).cfg == SMALL
    again = tmp_path / "again.pth.tar"
    run(back, again)
    assert again.read_bytes() == there.read_bytes()


def test_what_ships_says_what_it_is(tmp_path):
    assert run("small", tmp_path / "s.pth.tar", "--recipe", "mine.yaml", "--dtype", "float16").exit_code == 0
    content = torch.load(tmp_path / "s.pth.tar", weights_only=True)
    assert content["settings"]["preset"] == content["settings"]["config_name"] == "small"
    assert content["settings"]["recipe"] == "mine.yaml"
    assert OSTrack.from_pretrained(tmp_path / "s.pth.tar").cfg == PRESETS["small"]
    shipped = OSTrack.from_pretrained("small").state_dict()
    for name, value in content["net"].items():
        assert value.dtype == (torch.float16 if shipped[name].is_floating_point() else torch.int64)
        torch.testing.assert_close(value.to(shipped[name].dtype), shipped[name], rtol=1e-3, atol=1e-4)


class Settings:
    def __init__(self, name):
        self.config_name = name


@pytest.mark.slow
def test_a_published_checkpoint(tmp_path):
    """Preset and recipe are what its settings say."""
    with torch.device("meta"):
        shapes = OSTrack.from_preset("ostrack_256_ce").state_dict()
    state = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in shapes.items()}
    name = "vitb_256_mae_ce_32x4_got10k_ep100"
    torch.save({"net": state, "settings": Settings(name)}, tmp_path / "x.pth.tar")
    assert run(tmp_path / "x.pth.tar", tmp_path / "x.safetensors", "--dtype", "bfloat16").exit_code == 0
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["preset"] == "ostrack_256_ce_got10k" and file.metadata()["recipe"] == name
    assert read_notes(tmp_path / "x.safetensors")["recipe"] == name


def test_mistakes(weights, tmp_path):
    for arguments, message in (
        ((weights, tmp_path / "x.onnx"), "must end in .safetensors"),
        ((weights, tmp_path / "x.pth", "--dtype", "int8"), "--dtype 'int8'"),
        ((weights, weights), "source itself"),
        ((tmp_path / "missing.pth", tmp_path / "x.pth"), "no weights"),
        ((weights, tmp_path / "x.pth", "--config", "no_such"), "unknown preset 'no_such'"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.stderr
    assert state_of(weights) and not list(tmp_path.glob("x*"))


def test_every_command_with_weights_takes_a_configuration(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(build_ostrack("small").state_dict(), path)
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: 1")
    for command in ("track", "demo", "evaluate", "profile", "tune"):
        shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"]).output
        assert "--weights" in shown and "--config" in shown, command
    arguments = ["demo", "-o", str(tmp_path / "out"), "--weights", str(path), "--config", str(bad)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "no MODEL section" in done.stderr


def test_a_folder(weights, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        OSTrack.from_pretrained(folder)
    shutil.copy(weights, folder / "a.safetensors")
    (folder / "README.md").write_text("text")
    assert find_weights(folder) == folder / "a.safetensors"
    shutil.copy(weights, folder / "b.safetensors")
    with pytest.raises(FileNotFoundError, match=r"several files of weights, choose one: a\.safetensors, b"):
        OSTrack.from_pretrained(str(folder))
    shutil.copy(weights, folder / "model.safetensors")
    assert find_weights(str(folder)).name == "model.safetensors"


class Hub(BaseHTTPRequestHandler):
    """What the Hugging Face client asks for: the list of a repository's files, and a file, by HEAD and GET."""

    repositories: dict[str, dict[str, bytes]]
    commit = "0" * 40

    def respond(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            name = "/".join(path.split("/")[2:4])
            if name not in self.repositories:
                return self.respond(401, b"{}", X_Error_Code="RepoNotFound")
            files = [{"rfilename": file} for file in self.repositories[name]]
            found = {"id": name, "sha": self.commit, "siblings": files}
            return self.respond(200, json.dumps(found).encode(), Content_Type="application/json")
        if "/resolve/" not in path:
            return self.respond(404)
        owner, model, _, _, *rest = path.split("/")
        files = self.repositories.get(f"{owner}/{model}")
        if files is None:
            return self.respond(401, b"", X_Error_Code="RepoNotFound")
        data = files.get("/".join(rest))
        if data is None:
            return self.respond(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=self.commit)
        tag = hashlib.sha256(data).hexdigest()
        return self.respond(200, data, ETag=f'"{tag}"', X_Repo_Commit=self.commit)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(weights):
    pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    data = weights.read_bytes()
    Hub.repositories = {"us-er/model": {"model.safetensors": data}, "user/other": {"x.md": b"", "w.safetensors": data}}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def from_hub(name, endpoint, cache, **more):
    """In a process of its own: the client reads its settings when it is imported."""
    code = "import sys; from ostrack_fast import OSTrack; print(OSTrack.from_pretrained(sys.argv[1]).cfg.embed_dim)"
    proxies = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    names = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **proxies, **more}
    return subprocess.run(
        [sys.executable, "-c", code, name], capture_output=True, text=True, env={**os.environ, **names}, cwd=cache
    )


def test_from_the_hub(hub, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("us-er/model", "us-er/model@main", "user/other"):
        done = from_hub(name, hub, cache)
        assert done.stdout.strip() == "16", done.stderr
    missing = from_hub("user/nothing", hub, cache)
    assert "neither a file here nor a public model" in missing.stderr and "hf auth login" in missing.stderr
    # Offline what is in the cache is enough, and for the rest the error says what to do.
    offline = {"HF_HUB_OFFLINE": "1"}
    assert from_hub("us-er/model", hub, cache, **offline).stdout.strip() == "16"
    error = from_hub("us-er/unseen", hub, cache, **offline).stderr
    assert "the Hub cannot be reached" in error and "HF_ENDPOINT" in error and "path of" in error
    assert from_hub("user/other", hub, cache, **offline).stdout.strip() == "16"


def test_an_unreachable_hub_is_asked_once_and_the_cache_serves(hub, tmp_path):
    for name in ("us-er/model", "user/other"):
        assert from_hub(name, hub, tmp_path).returncode == 0
        assert from_hub(name, "http://127.0.0.1:9", tmp_path).stdout.strip() == "16"
    error = from_hub("us-er/unseen", "http://127.0.0.1:9", tmp_path).stderr
    assert "the Hub cannot be reached (Connect" in error and "Without a network there are small" in error
    assert "Retry" not in error


def test_without_the_hubs_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'ostrack_fast\[hub\]'"):
        OSTrack.from_pretrained("user/model")


def test_a_file_that_is_missing_is_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("folder/w.safetensors", "a/b/c", Path("user/model"), "user/model.pth.tar", "/user/model"):
        with pytest.raises(FileNotFoundError, match="neither a file, nor a folder"):
            OSTrack.from_pretrained(name)


def test_the_shipped_weights_are_where_they_were():
    with pytest.raises(FileNotFoundError, match="no weights ''"):
        find_weights("")  # not the folder one happens to be in
    assert find_weights("small") == Path(str(resources.files("ostrack_fast"))) / "weights" / "small.safetensors"


def test_a_full_disk_under_the_published_layout_is_told():
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        save_torch({"net": torch.zeros(3)}, Full())


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("small", "small"),
        ("runs/mine", "mine"),
        ("user/model", "model"),
        ("a/OSTrack_ep0300.pth.tar", "OSTrack_ep0300"),
        ("my.v1.safetensors", "my.v1"),
        ("my.v2.pth", "my.v2"),
        ("/", "weights"),
    ],
)
def test_what_is_made_of_weights_has_their_name(weights, name):
    assert short_name(weights) == name
