"""The end of a run: scores, report, model card, and what to do next."""

import hashlib
import shlex
from pathlib import Path

from peftcls.cli.folders import push_folder
from peftcls.cli.tables import Tables
from peftcls.data.reading import source_name
from peftcls.models.model_card import is_own_card, write_card
from peftcls.recipe import report_scores
from peftcls.report import Meter
from peftcls.training.trainer import Trainer


def finish(
    trainer: Trainer, tables: Tables, meter: Meter, *, file: str, push_to_hub: str | None = None
) -> None:
    """Print the scores, write the report and the model card, and push the folder if asked to.

    Args:
        trainer: after `fit`.
        tables: of the run.
        meter: made when the command began.
        file: with the training rows.
        push_to_hub: the repository; None for none.
    """
    scores = report_scores(trainer, tables.train, tables.valid, tables.test, {}, meter)
    if not trainer.accelerator.is_main_process:
        return
    out = trainer.output_dir
    card = write_card(out, scores=scores, about=_card_facts(file, tables))
    if not is_own_card(card):
        print(f"note: {card} is no model card of peftcls; it was left as it is.")
    quoted = shlex.quote(str(out))
    print(f"the adapter is in {out}; next: peftcls predict {quoted} FILE --out ANSWERS.csv")
    if push_to_hub:
        push_folder(directory=out, repository=push_to_hub, private=False)


def _card_facts(file: str, tables: Tables) -> dict[str, str]:
    """Facts for the model card: the rows, their number, and the checksum of the training file."""
    facts = {
        "learnt from": f"{len(tables.train)} rows ({source_name(tables.train)})",
        "the best epoch chosen by": f"{len(tables.valid)} rows ({source_name(tables.valid)})",
        "test rows": source_name(tables.test),
    }
    if Path(file).is_file():
        with open(file, "rb") as training_file:
            digest = hashlib.file_digest(training_file, "sha256")
        facts["SHA-256 of the training file"] = digest.hexdigest()
    return facts
