"""How do a run's curves get into TensorBoard? As one event file, written anew from the log when a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdsr.training.run import Store


class Events:
    """The event file of a run, in a local folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):  # of the session before: `rewrite` tells it all again
            old.unlink()
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Tell what earlier sessions logged."""
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Tell one row of the log."""
        step = row["step"]
        self._writer.add_scalar("train/loss", row["loss"], step)
        self._writer.add_scalar("train/learning_rate", row["learning_rate"], step)
        for scale, (bicubic, network) in row.get("psnr_y", {}).items():
            self._writer.add_scalar(f"validation/psnr_y_x{scale}", network, step)
            self._writer.add_scalar(f"validation/gain_over_bicubic_x{scale}", network - bicubic, step)

    def copy_to(self, store: Store) -> None:
        """Put the file beside the run's others, unless it lies there already."""
        self._writer.flush()
        for path in self.folder.glob("events.out.tfevents.*"):
            if not store.exists(f"tensorboard/{path.name}"):
                store.write("tensorboard/events.out.tfevents.0.vdsr", path.read_bytes())

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
