"""A parser's complaint in one line."""

from argparse import ArgumentError
from pathlib import Path

import pytest

from isvit_lightning.errors import IsvitError
from isvit_lightning.run.messages import one_sentence, own_sentences, reason, told

OWN = "model.bits.weight is 9, expected 2 to 8: change it there."
WRAPPED = ValueError(
    f"""Parser key "model":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path:
      - {OWN}
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>"""
)


def test_own_sentences_are_found_inside() -> None:
    assert own_sentences(WRAPPED) == [OWN]
    assert one_sentence(WRAPPED) == OWN


def test_the_first_of_several_is_told() -> None:
    other = "data.batch_size is 0, expected 1 or more: raise data.batch_size."
    error = ValueError(f"  - {OWN}\n- {other}  ")
    assert own_sentences(error) == [OWN, other]
    assert one_sentence(error) == OWN


def test_others_become_one_line_that_says_where_to_look() -> None:
    error = ValueError('Key "invented"\n    is not   expected.\n')
    assert own_sentences(error) == []
    assert one_sentence(error) == 'Key "invented" is not expected.; `isvit fit --help` lists the expected keys.'


def test_half_a_sentence_is_not_one_of_ours() -> None:
    assert own_sentences(ValueError("a value, expected another")) == []
    assert own_sentences(ValueError("the end of a value expected here.")) == []
    assert own_sentences(ValueError("")) == []


UNION = """Parser key "data":
    - Expected a path but torch.nn.Linear either not accessible or invalid
    - Does not validate against any of the Union subtypes
      Subtypes: [<class 'Images'>, <class 'NoneType'>]
      Errors:
        - Import path does not correspond to a subclass of Images
        - Expected a <class 'NoneType'>
      Given value type: <class 'str'>
      Given value: torch.nn.Linear"""


def test_what_a_text_was_not_meant_to_be_is_left_out() -> None:
    assert reason(ValueError(UNION)) == 'Parser key "data": Import path does not correspond to a subclass of Images'


def test_a_class_that_cannot_be_built_is_told_with_its_reason() -> None:
    text = """Does not validate against any of the Union subtypes
Subtypes: [<class 'Logger'>, <class 'bool'>]
Errors:
  - Problem with given class_path 'loggers.WandbLogger':
      Requirement 'wandb>=0.12' not met.
  - Expected a <class 'bool'>
Given value type: <class 'Namespace'>"""
    found = reason(ValueError(text))
    assert found == "Problem with given class_path 'loggers.WandbLogger': Requirement 'wandb>=0.12' not met"


@pytest.mark.parametrize(
    ("error", "status"),
    [(IsvitError("A, expected b: c."), 2), (ArgumentError(None, "unknown"), 2), (ValueError("- a, expected b: c."), 2)],
)
def test_a_mistake_has_status_2(error: Exception, status: int) -> None:
    assert told(error)[1] == status


def test_what_nobody_expected_has_status_1_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sentence, status = told(KeyError("loss"))
    assert status == 1
    assert sentence.startswith("The program failed (KeyError: 'loss'), expected to go on to its end: ")
    assert "runs/traceback.txt" in sentence
    assert "KeyError" in (tmp_path / "runs" / "traceback.txt").read_text()
