"""The notebook runs from its first cell to its last, and is stored without outputs."""

import nbclient
import nbformat
import pytest
from snippets import ROOT

import peftcls

NOTEBOOK = ROOT / "recipes" / "quickstart.ipynb"


EXPECTED_OUTPUTS = (
    "('0', '1')",
    "264 rows of train, 60 rows of valid, 120 rows of test",
    "loaded again and compared",
    "this run",
    "TF-IDF + logistic regression",
    "majority",
    "(paired)",
    "report.html",
)


def printed(cell) -> str:
    texts = []
    for output in cell.get("outputs", []):
        texts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    return "".join(texts)


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 6
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_leads_from_a_table_to_an_adapter_scores_and_predictions(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, startup_timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = "\n".join(printed(cell) for cell in notebook.cells)
    for expected in EXPECTED_OUTPUTS:
        assert expected in outputs
    folder = tmp_path / "runs" / "quickstart"
    rows = peftcls.read_rows(folder / "predictions.csv").to_list()
    answers = peftcls.load_predictor(folder).predict([row["title"] for row in rows])
    assert [row["label"] for row in rows] == [answer.label for answer in answers]
    probabilities = [max(answer.probabilities.values()) for answer in answers]
    assert [float(row["probability"]) for row in rows] == pytest.approx(probabilities, abs=1e-5)
    assert (folder / "report.html").is_file()
