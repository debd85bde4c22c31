"""What a benchmark found: ``benchmark.json``, ``benchmark.md`` and the tables of a console."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from isvit_lightning.run.benchmark import tables
from isvit_lightning.run.benchmark.forms import Absent, Form
from isvit_lightning.run.benchmark.machine import sentence_of
from isvit_lightning.run.benchmark.parity import Parity
from isvit_lightning.run.benchmark.timing import Speed
from isvit_lightning.storage.files import write_atomically, write_json


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Args:
        title: what was measured.
        facts: of the machine.
        seed: of the images that are timed.
        repeats: batches that were timed of each form.
        images: evaluation images; 0 where accuracy was not measured.
        columns: metrics of the task, each with its title.
        forms: all, those that there are not among them.
        speeds: by form and numbers of threads and images.
        parities: by form.
        profile: why products are ones of floats, by engine and path; None where that was not asked.
        codes: how many codes of the integer runtime were compared with the simulated ones, layer by layer on the same
            inputs, and how many differ; None where that was not asked.
    """

    title: str
    facts: Mapping[str, Any]
    seed: int
    repeats: int
    images: int
    columns: Sequence[tuple[str, str]]
    forms: Sequence[Form | Absent]
    speeds: Sequence[Speed]
    parities: Sequence[Parity] = ()
    profile: Mapping[str, Mapping[str, str]] | None = None
    codes: Mapping[str, int] | None = None

    def write(self, directory: Path) -> None:
        """Write ``benchmark.json`` and ``benchmark.md``.

        Args:
            directory: of the run.

        Raises:
            IsvitError: they cannot be written.
        """
        write_json(directory / "benchmark.json", self.as_dict())
        write_atomically(directory / "benchmark.md", self.markdown().encode())

    def as_dict(self) -> dict[str, Any]:
        """The content of ``benchmark.json``."""
        return {
            "title": self.title,
            "machine": dict(self.facts),
            "seed": self.seed,
            "repeats": self.repeats,
            "images": self.images,
            "forms": [_plain(form) for form in self.forms],
            "speed": [{**asdict(row), "images_per_second": row.images_per_second} for row in self.speeds],
            "parity": [asdict(row) for row in self.parities],
            "profile": self.profile,
            "codes": self.codes,
        }

    def markdown(self) -> str:
        """The content of ``benchmark.md``."""
        parts = [f"# {self.title}", f"{sentence_of(self.facts)}, seed {self.seed}"]
        parts += [f"## {title}\n\n{tables.markdown(rows)}" for title, rows in self.sections().items()]
        parts += ["\n".join(f"* {line}" for line in self.profiled())] if self.profile else []
        return "\n\n".join(parts) + "\n"

    def on_console(self) -> list[Table | str]:
        """The same for a console."""
        shown = [tables.on_console(title, rows) for title, rows in self.sections().items()]
        return [*shown, *self.profiled()]

    def sections(self) -> dict[str, list[tables.Row]]:
        """Rows of the tables by title: speed, and sizes with accuracy."""
        absent = [form for form in self.forms if isinstance(form, Absent)]
        present = [form for form in self.forms if isinstance(form, Form)]
        measured = f" and accuracy on {self.images} images" if self.images else ""
        return {
            f"Speed, medians of {self.repeats} batches by turns": tables.speed_rows(self.speeds, absent),
            f"Size{measured}": tables.form_rows(present, self.parities, self.columns),
        }

    def profiled(self) -> list[str]:
        """Which products are ones of floats, a line for each."""
        lines = []
        for engine, products in (self.profile or {}).items():
            lines += [f"{engine}, {path}: {reason}" for path, reason in products.items()]
            lines += [] if products else [f"{engine}: no product is one of floats"]
        if self.codes is not None:
            differing, compared = self.codes["differing"], self.codes["compared"]
            lines.append(
                f"PyTorch, integer: {differing:,} of {compared:,} codes differ where layers see the same inputs"
            )
        return lines


def _plain(form: Form | Absent) -> dict[str, Any]:
    if isinstance(form, Absent):
        return asdict(form)
    names = ("engine", "name", "is_float", "file_bytes", "resident_bytes")
    return {name: getattr(form, name) for name in names}
