"""Where finished rounds go: a run folder, or memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from crossfeed.describe.schema import Ecosystem
from crossfeed.errors import CrossfeedError
from crossfeed.record.pool import Pool
from crossfeed.record.round import RoundRecord

if TYPE_CHECKING:
    import pyarrow


class Recorder(Protocol):
    """What the loop needs of a record; :class:`crossfeed.record.folder.RunFolder` and :class:`Memory` are two."""

    @property
    def rounds(self) -> list[int]:
        """Finished rounds."""
        ...

    def writing(self) -> AbstractContextManager[Any]:
        """Held while rounds are committed."""
        ...

    def commit(self, record: RoundRecord) -> None:
        """Keep a finished round, whole or not at all."""
        ...

    def finish(self, result: str, reason: str) -> None:
        """Note how the run ended."""
        ...

    def round_info(self, round: int) -> dict[str, Any]:
        """What :attr:`RoundRecord.info` held."""
        ...

    def parameters(self, round: int, model: str) -> dict[str, Tensor]:
        """A model's parameters after a round."""
        ...

    def optimizer(self, round: int, model: str) -> dict[str, Tensor] | None:
        """A model's optimiser state after a round, where it is kept."""
        ...

    def pool(self, round: int, model: str) -> Pool:
        """The new rows of a model in a round, or in the last round before it that has some."""
        ...

    def metrics(self) -> pyarrow.Table:
        """All rounds: round, model, metric, domain, value, standard_error."""
        ...


class Memory:
    """A record in memory that writes nothing.

    Args:
        keep: ``all``: every round's parameters, rows and outputs, enough to resume; ``metrics``: metrics and infos only.
    """

    def __init__(self, keep: str = "metrics") -> None:
        self.keep = keep
        self.records: list[RoundRecord] = []
        self.eco: Ecosystem | None = None
        self.options: dict[str, Any] = {}
        self.status: dict[str, str] = {"result": "running", "reason": ""}

    @property
    def rounds(self) -> list[int]:
        """Finished rounds."""
        return [record.round for record in self.records]

    def writing(self) -> AbstractContextManager[Any]:
        """Nothing to hold."""
        return nullcontext()

    def commit(self, record: RoundRecord) -> None:
        """Keep a round."""
        if self.keep == "metrics":
            record = RoundRecord(record.round, record.metrics, seconds=record.seconds, info=record.info)
        self.records.append(record)

    def finish(self, result: str, reason: str) -> None:
        """Note how the run ended."""
        self.status = {"result": result, "reason": reason}

    def round_info(self, round: int) -> dict[str, Any]:
        """What a round noted."""
        return next(record.info for record in self.records if record.round == round)

    def parameters(self, round: int, model: str) -> dict[str, Tensor]:
        """A model's parameters after a round."""
        return self._last(round, model, "parameters")

    def optimizer(self, round: int, model: str) -> dict[str, Tensor] | None:
        """A model's optimiser state after a round."""
        trained = next(
            record for record in reversed(self.records) if record.round <= round and model in record.parameters
        )
        return trained.optimizers.get(model)

    def pool(self, round: int, model: str) -> Pool:
        """A model's new rows."""
        return self._last(round, model, "pools")

    def metrics(self) -> pyarrow.Table:
        """All rounds."""
        import pyarrow

        rows = [(record.round, m) for record in self.records for m in record.metrics]
        return pyarrow.table(
            {
                "round": pyarrow.array([t for t, _ in rows], pyarrow.int32()),
                "model": pyarrow.array([m.model for _, m in rows], pyarrow.string()),
                "metric": pyarrow.array([m.metric for _, m in rows], pyarrow.string()),
                "domain": pyarrow.array([m.domain for _, m in rows], pyarrow.string()),
                "value": pyarrow.array([m.value for _, m in rows], pyarrow.float64()),
                "standard_error": pyarrow.array([m.standard_error for _, m in rows], pyarrow.float64()),
            }
        )

    def _last(self, round: int, model: str, what: str) -> Any:
        for record in reversed(self.records):
            if record.round <= round and model in getattr(record, what):
                return getattr(record, what)[model]
        raise CrossfeedError(
            f"round {round} of {model}: no {what} in memory; run with `Memory('all')` or into a folder to keep them"
        )


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
