"""Downloads: torchvision's own code against a server on this machine, and what is said when it fails."""

import gzip
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import torchvision

from engram.datasets import sources
from engram.utils.errors import DataError
from tests.unit.test_sources import KINDS, check_cifar, cifar_batches, idx, md5, mnist_arrays, tiny_layout

NO_SERVER = "http://127.0.0.1:1/"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    return tmp_path


@pytest.fixture
def server(home):
    """Address of a server of the files in home/served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=home / "served")) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def mirror(home, server, monkeypatch) -> Path:
    """A local MNIST mirror with files of its own, and their sums."""
    resources = []
    for kind, array in zip(KINDS, mnist_arrays(), strict=True):
        file = home / f"served/{kind}-ubyte.gz"
        file.write_bytes(gzip.compress(idx(array)))
        resources.append((file.name, md5(file)))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [server])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    return home / "served"


def test_mnist_is_downloaded_once(home, mirror, capfd):
    first = sources.mnist(home / "new/data")
    assert "mnist: not found in" in capfd.readouterr().err
    for file in mirror.iterdir():
        file.unlink()
    second = sources.mnist(home / "new/data")
    assert torch.equal(first.train_x, second.train_x)
    assert first.test_y.tolist() == mnist_arrays()[3].tolist()


def test_an_interrupted_download_is_taken_up_again(home, mirror):
    raw = home / "data/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"the first half")
    (raw / "train-labels-idx1-ubyte").write_bytes(b"unpacked in part")
    assert sources.mnist(home / "data").train_y.tolist() == mnist_arrays()[1].tolist()


@pytest.mark.parametrize("fault", ["no network", "other content"])
def test_a_failed_download_says_what_to_do(home, mirror, monkeypatch, fault):
    if fault == "no network":
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [NO_SERVER])
    (mirror / "t10k-images-idx3-ubyte.gz").write_bytes(b"an error page")
    with pytest.raises(
        DataError, match=r"mnist: the download failed \(.*images.*\); put MNIST/raw/"
    ) as caught:
        sources.mnist(home / "data")
    assert "--data_dir DIR" in str(caught.value) and "\n" not in str(caught.value)


def test_cifar_is_downloaded_and_unpacked(home, server, monkeypatch):
    made, archive = home / "made/cifar-10-batches-py", home / "served/cifar.tar.gz"
    for name, value in cifar_batches(made).items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made, made.name)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", server + archive.name)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(archive))
    check_cifar(sources.cifar10(home / "data"), made)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", NO_SERVER)
    with pytest.raises(
        DataError, match=r"cifar10: the download failed .*image folder cifar10/\) into .*other"
    ):
        sources.cifar10(home / "other")


def test_tiny_imagenet_is_downloaded_and_unpacked(home, server, monkeypatch):
    assert sources.TINY_URL.startswith("https://") and sources.TINY_MD5 == "90528d7ca1a48142e341f4ef8d21d0de"
    root, archive = tiny_layout(home / "made/tiny-imagenet-200"), home / "served/tiny.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(root.rglob("*")):
            packed.write(file, file.relative_to(root.parent))
    monkeypatch.setattr(sources, "TINY_URL", server + archive.name)
    with pytest.raises(DataError, match=r"tinyimagenet: the download failed .*tiny-imagenet-200\.zip\) into"):
        sources.tinyimagenet(home / "data")  # the sum is not the published one
    monkeypatch.setattr(sources, "TINY_MD5", md5(archive))
    assert sources.tinyimagenet(home / "data").train_x.shape == (400, 3, 64, 64)
    assert sorted(f.name for f in (home / "data").iterdir()) == ["decoded", "tiny-imagenet-200"]


def test_whatever_is_downloaded_has_a_checksum():
    """torchvision refuses a file of another MD5, whoever sent it; some of its mirrors have no https."""
    data = torchvision.datasets
    for resources in (data.MNIST.resources, data.FashionMNIST.resources):
        assert len(resources) == 4 and all(len(md5) == 32 for _, md5 in resources)
    assert len(data.CIFAR10.tgz_md5) == len(data.CIFAR100.tgz_md5) == 32
    assert all(len(md5) == 32 for md5 in data.Omniglot.zips_md5.values())


def test_a_data_folder_that_cannot_be_made_is_a_clear_error(home):
    (home / "file").write_text("")
    for read in (sources.mnist, sources.cifar100, sources.tinyimagenet):
        with pytest.raises(DataError, match=r"--data_dir (DIR|.*is a file)"):
            read(home / "file")
