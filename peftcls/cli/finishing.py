"""The end of a run: scores, report, model card, and what to do next."""

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from peftcls.cli.folders import push_folder
from peftcls.cli.seeds import SeedScores
from peftcls.cli.tables import Tables
from peftcls.data.reading import source_name
from peftcls.evaluation import Evaluation
from peftcls.models.model_card import is_own_card, write_card
from peftcls.recipe import report_scores
from peftcls.report import Meter
from peftcls.training.trainer import Trainer

MANY_UNUSABLE = 0.5
"""The share of unusable answers from which something has gone wrong."""


def finish(
    trainer: Trainer,
    tables: Tables,
    meter: Meter,
    *,
    file: str,
    push_to_hub: str | None = None,
    other_seeds: SeedScores | None = None,
) -> None:
    """Print the scores, write the report and the model card, and push the folder if asked to.

    Args:
        trainer: after `fit`.
        tables: of the run.
        meter: made when the command began.
        file: with the training rows.
        push_to_hub: the repository; None for none.
        other_seeds: the scores of the same run with other seeds, if there were any.
    """
    scores = report_scores(trainer, tables.train, tables.valid, tables.test, {}, meter)
    if not trainer.accelerator.is_main_process:
        return
    unusable = scores.scores.get("unusable", 0.0)
    if unusable >= MANY_UNUSABLE:
        print(
            f"{unusable:.0%} of the answers are unusable: cut off, empty or not in the form that "
            "was asked for. Try a larger base, more epochs, or a larger --max-new-tokens."
        )
    facts = _card_facts(tables)
    if other_seeds is not None:
        seed = trainer.config.seed
        seeds = other_seeds.beside(seed, scores.scores)
        print(f"\n{seeds}\nThe folder holds the run of seed {seed}; no score chose it.")
        score = trainer.task.score_names[0]
        name = f"mean {score} of {len(seeds.by_seed)} seeds (95 % t-interval)"
        facts[name] = seeds.summary(score)
    finish_folder(
        trainer.output_dir, scores=scores, facts=facts, file=file, push_to_hub=push_to_hub
    )


def finish_folder(
    out: Path,
    *,
    scores: Evaluation,
    facts: Mapping[str, str],
    file: str,
    push_to_hub: str | None,
) -> None:
    """Write the model card, say what to do next, and push the folder if asked to.

    Args:
        out: the adapter folder.
        scores: on the test rows.
        facts: for the model card.
        file: with the training rows.
        push_to_hub: the repository; None for none.
    """
    card = write_card(out, scores=scores, about={**facts, **_checksum_fact(file)})
    if not is_own_card(card):
        print(f"note: {card} is no model card of peftcls; it was left as it is.")
    quoted = shlex.quote(str(out))
    print(f"the adapter is in {out}; next: peftcls predict {quoted} FILE --out ANSWERS.csv")
    if push_to_hub:
        push_folder(directory=out, repository=push_to_hub, private=False)


def _card_facts(tables: Tables) -> dict[str, str]:
    """Facts for the model card: the rows and their number."""
    return {
        "learnt from": f"{len(tables.train)} rows ({source_name(tables.train)})",
        "the best epoch chosen by": f"{len(tables.valid)} rows ({source_name(tables.valid)})",
        "test rows": source_name(tables.test),
    }


def _checksum_fact(file: str) -> dict[str, str]:
    """The checksum of the training file, for the model card; empty where it is no file."""
    if not Path(file).is_file():
        return {}
    with open(file, "rb") as training_file:
        digest = hashlib.file_digest(training_file, "sha256")
    return {"SHA-256 of the training file": digest.hexdigest()}
