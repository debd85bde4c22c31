"""A parser's complaint in one line."""

from isvit_lightning.run.messages import one_sentence, own_sentences

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
