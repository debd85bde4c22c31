"""A folder of a hub: the same bits in a fresh process, uploads without a network, and one sentence for faults."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import isvit_lightning
from isvit_lightning.errors import IsvitError
from isvit_lightning.export import hub
from isvit_lightning.export.artifact import QuantizedNetwork
from isvit_lightning.export.sealed import read_hash
from tests.helpers import image_batch

FILES = {"config.json", "model.safetensors", "README.md", "results.json"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(quickstart_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the quickstart's run; not to be changed."""
    folder = tmp_path_factory.mktemp("hub") / "digits"
    isvit_lightning.load(quickstart_run).save_pretrained(folder)
    return folder


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, tmp_path / "digits"))


@torch.no_grad()
def logits_of(network: QuantizedNetwork) -> torch.Tensor:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result: torch.Tensor = network(images)
    return result


def assert_refused(match: str, path: str | Path) -> None:
    with pytest.raises(IsvitError, match=match) as caught:
        isvit_lightning.load(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(". ") == 0


def test_a_folder_has_what_a_hub_wants(folder: Path, quickstart_run: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == {"name": "vit_digits", "args": {}}
    assert config["preprocessing"]["input_size"] == [3, 32, 32]
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert config["quantization_config"]["format"] == "pack-quantized"
    assert config["isvit"]["format"] == "isvit-packed-3"
    assert config["isvit"]["sha256"] == read_hash(folder / "model.safetensors")
    assert config["isvit"]["record"]["seed"] == isvit_lightning.load(quickstart_run).record["seed"]
    results = json.loads((quickstart_run / "results.json").read_text())
    assert json.loads((folder / "results.json").read_text()) == results


def test_a_folder_gives_the_same_bits_in_a_fresh_process(folder: Path, quickstart_run: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch, isvit_lightning\n"
        "network, images = isvit_lightning.load(sys.argv[1]), torch.load(sys.argv[2])\n"
        "with torch.no_grad(): torch.save(network(images), sys.argv[3])"
    )
    network, (given, made) = isvit_lightning.load(quickstart_run), (tmp_path / "images.pt", tmp_path / "logits.pt")
    torch.save(image_batch(32, 4), given)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, folder, given, made], cwd=tmp_path, env=environment, check=True)
    with torch.no_grad():
        assert torch.equal(torch.load(made), network(torch.load(given)))


def test_load_and_from_pretrained_are_alike(folder: Path) -> None:
    first, second = isvit_lightning.load(folder), QuantizedNetwork.from_pretrained(str(folder))
    assert torch.equal(logits_of(first), logits_of(second))
    assert type(second) is QuantizedNetwork
    assert (first.record, first.architecture, first.preprocessing, first.results) == (
        second.record,
        second.architecture,
        second.preprocessing,
        second.results,
    )


def test_a_folder_that_is_written_again_is_the_same(folder: Path, tmp_path: Path) -> None:
    isvit_lightning.load(folder).save_pretrained(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_old_numbers_and_cards_are_not_kept(own_folder: Path) -> None:
    network = isvit_lightning.load(own_folder)
    (own_folder / "README.md").write_text("top-1 100")
    network.results = None
    network.save_pretrained(own_folder)
    assert {path.name for path in own_folder.iterdir()} == FILES - {"results.json"}
    assert "top-1 100" not in (own_folder / "README.md").read_text()
    assert isvit_lightning.load(own_folder).results is None


def test_a_run_directory_tells_its_results(quickstart_run: Path, tmp_path: Path) -> None:
    results = json.loads((quickstart_run / "results.json").read_text())
    assert isvit_lightning.load(quickstart_run).results == results
    assert isvit_lightning.load(quickstart_run / "quantized.safetensors").results == results
    shutil.copy(quickstart_run / "quantized.safetensors", tmp_path / "other.safetensors")
    (tmp_path / "results.json").write_text("{}")
    assert isvit_lightning.load(tmp_path / "other.safetensors").results is None


@pytest.mark.parametrize("make", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_the_mixin_leaves_the_class_a_module(make: Callable[[Any], Any], folder: Path) -> None:
    """It inspects arguments and makes instances itself."""
    network = isvit_lightning.load(folder)
    assert torch.equal(logits_of(make(network)), logits_of(network))
    assert set(dict(network.named_children())) == {"model"}
    assert all(name.startswith("model.") for name in network.state_dict())
    again = QuantizedNetwork(model=network.model, architecture=None, preprocessing=None, record={"seed": 3})
    assert (again.record, again.results) == ({"seed": 3}, None)


# What is damaged, and the sentence.
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no_config": (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing or damaged"),
    "no_json": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is missing or damaged"),
    "list": (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json is missing or damaged"),
    "no_section": (lambda folder: (folder / "config.json").write_text("{}"), r"config\.json is missing or damaged"),
    "other_hash": (lambda folder: change(folder, sha256="0" * 64), r"config\.json belongs to another model\.safet"),
    "later": (lambda folder: change(folder, format="isvit-packed-4"), r"written by a later version.*install a newer"),
    "earlier": (lambda folder: change(folder, format="isvit-packed-2"), r"written by an earlier version.*calibrate"),
    "truncated": (lambda folder: cut(folder / "model.safetensors"), r"model\.safetensors is damaged"),
    "altered": (lambda folder: flip(folder / "model.safetensors"), r"model\.safetensors was changed after it was"),
}


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["isvit"].update(values)
    (folder / "config.json").write_text(json.dumps(config))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_sentence(damage: str, own_folder: Path) -> None:
    apply, match = DAMAGES[damage]
    apply(own_folder)
    assert_refused(match, own_folder)


def test_damaged_results_are_none(own_folder: Path) -> None:
    (own_folder / "results.json").write_text("[1")
    assert isvit_lightning.load(own_folder).results is None


def test_an_unfinished_run_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert_refused(r"no finished run, but an interrupted one, expected .*--resume true", tmp_path)


class FakeApi:
    """Keeps what is uploaded in a folder."""

    store: Path
    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("api", {"token": token}))

    def create_repo(self, **options: Any) -> Any:
        self.calls.append(("create", options))
        return type("Url", (), {"repo_id": options["repo_id"]})

    def upload_folder(self, **options: Any) -> str:
        self.calls.append(("upload", options))
        shutil.copytree(options["folder_path"], self.store / options["repo_id"])
        return "https://example.org/commit"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeApi]:
    """A hub that is a folder, for uploads and downloads."""
    FakeApi.store, FakeApi.calls = tmp_path / "store", []

    def download(repository: str, allow_patterns: list[str], **options: Any) -> str:
        FakeApi.calls.append(("download", {"repo_id": repository, "allow_patterns": allow_patterns, **options}))
        if not (FakeApi.store / repository).is_dir():
            raise FileNotFoundError("404: Repository Not Found")
        return str(FakeApi.store / repository)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", FakeApi)
    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "unreachable", lambda what="": None)
    monkeypatch.chdir(tmp_path)
    return FakeApi


def test_what_is_pushed_is_what_is_loaded(api: type[FakeApi], folder: Path) -> None:
    network = isvit_lightning.load(folder)
    address = network.push_to_hub(
        "owner/digits-w4a4", private=True, token="t", model_card_kwargs={"license": "apache-2.0"}
    )
    assert address == "https://example.org/commit"
    assert [name for name, _ in api.calls] == ["api", "create", "upload"]
    assert api.calls[1][1]["private"] is True
    stored = api.store / "owner" / "digits-w4a4"
    assert {path.name for path in stored.iterdir()} == FILES
    assert "license: apache-2.0" in (stored / "README.md").read_text()
    for loaded in (isvit_lightning.load("owner/digits-w4a4"), QuantizedNetwork.from_pretrained("owner/digits-w4a4")):
        assert torch.equal(logits_of(loaded), logits_of(network))
        assert loaded.results == network.results
    assert set(api.calls[-1][1]["allow_patterns"]) == FILES


def test_options_of_the_hub_are_handed_on(api: type[FakeApi], folder: Path) -> None:
    isvit_lightning.load(folder).push_to_hub("owner/name")
    QuantizedNetwork.from_pretrained("owner/name", revision="v1", token="t", force_download=True)
    options = api.calls[-1][1]
    assert (options["revision"], options["token"], options["force_download"]) == ("v1", "t", True)
    assert "cache_dir" not in options


def test_save_pretrained_can_push_too(api: type[FakeApi], folder: Path, tmp_path: Path) -> None:
    isvit_lightning.load(folder).save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="owner/mine")
    assert (api.store / "owner/mine/config.json").read_text() == (tmp_path / "mine/config.json").read_text()


def test_a_missing_repository_is_one_sentence(api: type[FakeApi]) -> None:
    assert_refused(r"owner/absent is no path here and could not be fetched from .* \(404.*\), expected", "owner/absent")


def test_a_repository_of_something_else_is_one_sentence(api: type[FakeApi]) -> None:
    (api.store / "owner/other").mkdir(parents=True)
    assert_refused(r"owner/other holds no model\.safetensors, expected", "owner/other")


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_it_is_one_sentence(offline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the real client, which is told to stay offline, or finds nobody."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("isvit_lightning.sources.published.getproxies", dict)
    monkeypatch.chdir(tmp_path)
    assert_refused(r"owner/absent is no path here and could not be fetched .*, expected", "owner/absent")


@pytest.mark.parametrize("path", ["runs/absent", "absent.safetensors", "owner/absent.safetensors", "absent", "a/b/c"])
def test_a_wrong_path_is_not_asked_for(path: str, api: type[FakeApi], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for wrong in (path, Path(path), Path("owner/name")):
        assert_refused(r"does not exist; expected a file of a finished run", wrong)
    assert api.calls == []


def test_a_refused_upload_is_one_sentence(api: type[FakeApi], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("403 Forbidden. (Request 1)\nlog in")

    monkeypatch.setattr(FakeApi, "create_repo", refuse)
    with pytest.raises(IsvitError, match=r"^owner/name could not be uploaded \(403 Forbidden\), expected .*hf auth"):
        isvit_lightning.load(folder).push_to_hub("owner/name")


def test_a_folder_that_is_a_file_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IsvitError, match=r"Cannot write .*file: .*; expected a folder that can be written"):
        isvit_lightning.load(folder).save_pretrained(tmp_path / "file")
