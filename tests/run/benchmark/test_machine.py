"""Facts of the machine."""

import datetime as dt

import torch

from isvit_lightning.run.benchmark.machine import machine_facts, sentence_of


def test_facts() -> None:
    facts = machine_facts(torch.device("cpu"))
    assert facts["processor"]
    assert facts["cores"] >= 1
    assert facts["accelerator"] is None
    assert facts["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert dt.datetime.fromisoformat(facts["date"]).tzinfo is not None


def test_a_sentence_leaves_out_what_there_is_not() -> None:
    facts = {
        "processor": "P",
        "cores": 2,
        "accelerator": None,
        "load": 0.5,
        "date": "D",
        "versions": {"torch": "1", "onnxruntime": "2", "openvino": "not installed"},
    }
    assert sentence_of(facts) == "P, 2 cores, load 0.5, torch 1, onnxruntime 2, openvino not installed, D"
