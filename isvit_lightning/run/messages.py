"""The sentences of this program inside what a parser says."""


def own_sentences(error: Exception) -> list[str]:
    """The sentences of this program inside a parser's complaint."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return [line for line in lines if ", expected" in line and line.endswith(".")]


def one_sentence(error: Exception) -> str:
    """A parser's complaint in one line; where one of this program's own sentences is inside, that alone."""
    own = own_sentences(error)
    return own[0] if own else f"{' '.join(str(error).split())}; `isvit fit --help` lists the expected keys."
