"""What people read of an export: the lines of its table, and the page that goes with its files."""

from __future__ import annotations

from fer_ray.data.faces import CROP_SIDE
from fer_ray.use.onnx_model import INPUT, OUTPUT

COLUMNS = ("format", "MB", "images/s", "balanced accuracy", "largest difference", "mean difference", "same expression")
_WIDTHS = (10, 7, 8, 17, 18, 15, 15)


def cells(row: dict) -> tuple[str, ...]:
    """The texts of `COLUMNS` for a row of `export.export_checkpoint`."""
    return (row["format"], f"{row['bytes'] / 1e6:.1f}", f"{row['images_per_s']:.1f}",
            f"{row['balanced_accuracy']:.4f}", f"{row['largest_difference']:.1e}", f"{row['mean_difference']:.1e}",
            f"{row['same_expression']:.2%}")


def line(row: dict | None = None) -> str:
    """A row of the table as a terminal shows it; without a row, its head."""
    texts = cells(row) if row else COLUMNS
    return "  ".join([texts[0].ljust(_WIDTHS[0]),
                      *(text.rjust(width) for text, width in zip(texts[1:], _WIDTHS[1:], strict=True))])


def markdown(summary: dict) -> str:
    """The page `export.md`: the table, and what one must know to run the files.

    `summary`: the content of `export.json`.
    """
    temperature = (f"divided by the temperature {summary['temperature']:.4g}" if summary["temperature"] else
                   "not calibrated: jobs/evaluate.py had not fitted a temperature yet")
    table = [COLUMNS, ("---", *("---:" for _ in COLUMNS[1:])), *map(cells, summary["rows"])]
    files = [f"- `{row['file']}`: {_WHAT[row['format']]}, sha256 `{row['sha256']}`" for row in summary["rows"][1:]]
    return "\n".join([
        f"# {summary['name']}: {summary['backbone']} for facial expressions", "",
        f"Exported from the checkpoint `{summary['checkpoint']}` on {summary['created'][:10]}.", "",
        *files, "",
        f"- **Input** `{INPUT}`: uint8 [N, {CROP_SIDE}, {CROP_SIDE}, 3], any number N of face crops, red, green and "
        "blue in 0..255. A grey crop is to be repeated into three channels. The network itself takes the centre "
        "of each crop and normalises it.",
        f"- **Output** `{OUTPUT}`: float32 [N, {len(summary['classes'])}], the probabilities of "
        f"{', '.join(summary['classes'])}, in this order. Their logits are {temperature}.",
        "- The metadata of each file name the classes, the temperature, and the options by which faces were cropped.",
        "", f"Scored on the {summary['test_images']:,} test images of `{summary['prepared']}`, on a CPU with "
        f"{summary['threads']} threads. Differences are those of probabilities from the original's: the largest "
        "one, and the mean over the images of each one's largest.", "",
        *("| " + " | ".join(row) + " |" for row in table), ""])


_WHAT = {"onnx": "ONNX in float32", "onnx_fp16": "ONNX in float16, for GPUs: CPUs compute it in float32, and slower",
         "onnx_int8": "ONNX in int8, for CPUs, its ranges measured on validation images",
         "torch": "PyTorch's own format, for `torch.export.load(FILE).module()`"}
HEAD = line()
