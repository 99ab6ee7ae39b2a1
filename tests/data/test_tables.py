"""Folders of tables: every row once, whatever the layout, and each file named if wrong."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm_jax.config import Data, Datasets, Memory, Word
from lm_jax.data.corpus import load
from lm_jax.data.shards import files_text, folder_texts
from lm_jax.data.tables import table_splits
from lm_jax.settings import UserError

DOCUMENTS = [f"document {number}\nwith é" for number in range(40)]


def content(text):
    return b"".join(text.blocks()).decode()


def refusal(call):
    """The one line with which a call refuses."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def table(first=0, last=40, **columns):
    rows = DOCUMENTS[first:last]
    return pa.table({"text": rows, "number": list(range(len(rows))), **columns})


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, row_group_size=7)


def write_arrow(path, rows, new=pa.ipc.new_stream):
    """As `datasets` writes, by default; in batches of three rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, new(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=3)


def save(folder, *shards, **state):
    """Write what `Dataset.save_to_disk` writes, as datasets 5.2.0 does."""
    names = [f"data-{n:05d}-of-{len(shards):05d}.arrow" for n in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        write_arrow(folder / name, rows)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(state))


def save_dict(folder, **splits):
    """Write what `DatasetDict.save_to_disk` writes."""
    for split, shards in splits.items():
        save(folder / split, *shards)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))


def texts_of(folder, text_key=None):
    return [content(text) for text in table_splits(str(folder), text_key).values()]


def documents(first, last):
    return "\n".join(DOCUMENTS[first:last])


def test_a_saved_dict_of_data_sets_is_its_splits(tmp_path):
    save_dict(tmp_path, test=[table(30)], train=[table(0, 9), table(9, 20)], dev=[table(20, 30)])
    assert texts_of(tmp_path) == [documents(0, 20), documents(20, 30), documents(30, 40)]


def test_missing_splits_are_cut_from_the_others(tmp_path):
    """In whole rows, 90 / 5 / 5 of train, or 95 / 5 of train, or the halves of validation."""
    save(tmp_path / "one", table(0, 15), table(15, 40))
    assert texts_of(tmp_path / "one") == [documents(0, 36), documents(36, 38), documents(38, 40)]
    save_dict(tmp_path / "two", train=[table(0, 20)], test=[table(20)])
    assert texts_of(tmp_path / "two") == [documents(0, 19), documents(19, 20), documents(20, 40)]
    save_dict(tmp_path / "halves", train=[table(0, 20)], validation=[table(20)])
    halves = [documents(0, 20), documents(20, 30), documents(30, 40)]
    assert texts_of(tmp_path / "halves") == halves


@pytest.mark.parametrize("inner", ["", "data"])
def test_parquet_files_are_known_by_their_names(inner, tmp_path):
    parts = {"train-00000-of-00002": (0, 9), "train-00001-of-00002": (9, 20)}
    parts |= {"validation-00000-of-00001": (20, 30), "test-00000-of-00001": (30, 40)}
    for name, (first, last) in parts.items():
        write_parquet(tmp_path / inner / f"{name}.parquet", table(first, last))
    write_parquet(tmp_path / inner / "unsupervised-00000-of-00001.parquet", table(0, 3))
    (tmp_path / "README.md").write_text("no table")
    assert texts_of(tmp_path) == [documents(0, 20), documents(20, 30), documents(30, 40)]
    (tmp_path / inner / "train-00001-of-00002.parquet").unlink()
    assert refusal(lambda: texts_of(tmp_path)) == (
        f"data.source.folder={tmp_path}: train-00001-of-00002.parquet is missing, of 2 shards 1 "
        "are there"
    )


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_files_of_no_split_s_name_are_all_train(new, tmp_path):
    for number, (first, last) in enumerate([(0, 13), (13, 40)]):
        write_arrow(tmp_path / f"{number}.arrow", table(first, last), new)
    assert texts_of(tmp_path) == [documents(0, 36), documents(36, 38), documents(38, 40)]


def test_rows_without_a_value_are_no_documents_and_empty_rows_are(tmp_path):
    rows = pa.table({"text": pa.array(["a", None, "", "b"], pa.large_string())})
    save_dict(tmp_path, train=[rows], validation=[rows], test=[rows])
    assert texts_of(tmp_path) == ["a\n\nb"] * 3


def test_the_column_is_the_only_one_of_text_or_the_one_named_text(tmp_path):
    save(tmp_path / "one", pa.table({"story": DOCUMENTS, "n": list(range(40))}))
    assert texts_of(tmp_path / "one")[2] == documents(38, 40)
    other = [f"title {number}" for number in range(40)]
    save(tmp_path / "two", table(title=other))
    assert texts_of(tmp_path / "two")[2] == documents(38, 40)
    assert texts_of(tmp_path / "two", "title")[2] == "title 38\ntitle 39"
    path = tmp_path / "two" / "data-00000-of-00001.arrow"
    assert refusal(lambda: texts_of(tmp_path / "two", "tilte")) == (
        f"data.source.text_key: the columns of text of {path} are text, title; 'tilte' is not "
        "among them"
    )
    save(tmp_path / "none", pa.table({"n": [1, 2]}))
    said = refusal(lambda: texts_of(tmp_path / "none"))
    assert said.endswith(
        "data-00000-of-00001.arrow: no column is of type string; the columns are n (int64)"
    )
    save(tmp_path / "bare", pa.table({}))
    said = refusal(lambda: texts_of(tmp_path / "bare"))
    assert said.endswith("no column is of type string; the columns are none")


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-30])


def no_utf_8(path):
    column = pa.array([b"\xff"] * 40).cast(pa.string(), safe=False)
    write_arrow(path, pa.table({"text": column}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, "is no table, or ends too early"),
        (lambda path: path.write_bytes(b"PAR1 and no more"), "is no table, or is damaged: "),
        (lambda path: path.write_bytes(b"ARROW1 and no more"), "is no table, or is damaged: "),
        (lambda path: path.write_bytes(b"abc\n" + bytes(9)), "is no table, or is damaged: "),
        (lambda path: path.unlink(), "there is no such file"),
        (no_utf_8, "is no table, or is damaged: "),
        (
            lambda path: write_arrow(path, pa.table({"a": ["b"]})),
            "has no column of text named text",
        ),
        (
            lambda path: write_arrow(path, pa.table([["a"], [1]], names=["text", "text"])),
            "has several columns named text",
        ),
    ],
)
def test_the_file_that_is_wrong_is_named(damage, said, tmp_path):
    save(tmp_path, table(0, 20), table(20))
    path = tmp_path / "data-00001-of-00002.arrow"
    damage(path)
    assert refusal(lambda: texts_of(tmp_path)).startswith(f"{path}: {said}")


def test_what_is_no_folder_of_tables_is_refused(tmp_path):
    name = f"data.source.folder={tmp_path}"
    said = refusal(lambda: texts_of(tmp_path))
    assert said == (
        f"{name}: the folder holds neither Parquet or Arrow files nor what save_to_disk writes"
    )
    write_parquet(tmp_path / "a.parquet", table())
    write_arrow(tmp_path / "a.arrow", table())
    said = refusal(lambda: texts_of(tmp_path))
    assert said == f"{name}: the folder holds files of several kinds, a.parquet and a.arrow"
    save(tmp_path, table(), _indices_data_files=[{"filename": "indices.arrow"}])
    assert "flatten_indices() them first" in refusal(lambda: texts_of(tmp_path))
    save_dict(tmp_path, test=[table()])
    assert refusal(lambda: texts_of(tmp_path)) == f"{name}: no split is named train, only test"
    (tmp_path / "dataset_dict.json").write_text('{"splits": 1}')
    assert "splits is not what save_to_disk writes" in refusal(lambda: texts_of(tmp_path))
    save(tmp_path / "few", table(0, 3))
    said = refusal(lambda: texts_of(tmp_path / "few"))
    assert said.endswith("train[90%:95%] is empty, of 3 rows in all")


def test_a_corpus_of_tables_is_the_corpus_of_their_text(tmp_path, monkeypatch):
    save_dict(tmp_path, train=[table(0, 20)], validation=[table(20, 30)], test=[table(30)])
    data = Data(source=Datasets(folder=str(tmp_path)), tokenizer=Word())
    text = load(
        Data(source=Memory(), tokenizer=Word()),
        [documents(0, 20), documents(20, 30), documents(30, 40)],
    )
    tables = load(data)
    assert tables.vocabulary == text.vocabulary
    assert tables.test.tokens.tolist() == text.test.tokens.tolist()
    path = tmp_path / "test" / "data-00000-of-00001.arrow"
    write_arrow(path, table(29))
    again = load(data)
    assert again.digest != tables.digest

    def then(vocabulary, split, dtype):
        write_arrow(path, table(28))
        return encoded(vocabulary, split, dtype)

    from lm_jax.data.encoding import encoded

    write_arrow(path, table(27))
    monkeypatch.setattr("lm_jax.data.corpus.encoded", then)
    said = refusal(lambda: load(data))
    assert said == f"{path}: has changed while it was read; begin again"


def test_a_table_among_files_is_its_documents(tmp_path):
    write_parquet(tmp_path / "train-1.parquet", table(0, 15))
    write_arrow(tmp_path / "train-2.arrow", table(15, 30), pa.ipc.new_file)
    write_parquet(tmp_path / "valid.parquet", table(30, 35, other=["x"] * 5))
    write_parquet(tmp_path / "test.parquet", table(35, 40))
    both = files_text(str(tmp_path / "train*"), "f")
    assert content(both) == "\n".join(DOCUMENTS[:30])
    assert b"".join(both.blocks(100)) == "\n".join(DOCUMENTS[:30]).encode()[100:]
    path = str(tmp_path / "valid.parquet")
    one, other = (files_text(path, "f", text_key=key) for key in ("text", "other"))
    assert (content(one), content(other)) == ("\n".join(DOCUMENTS[30:35]), "x\nx\nx\nx\nx")
    assert one.digest != other.digest
    (tmp_path / "train-2.arrow").unlink()
    assert content(folder_texts(str(tmp_path), "f")["test"]) == "\n".join(DOCUMENTS[35:])
    damaged = tmp_path / "a.parquet"
    damaged.write_bytes(b"PAR1 and no table")
    assert refusal(lambda: files_text(str(damaged), "f")).startswith(f"f={damaged}: is no table")
    assert "nothing is not among them" in refusal(
        lambda: files_text(path, "f", text_key="nothing")
    ).replace("'", "")
