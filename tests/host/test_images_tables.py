"""Pictures in Parquet and Arrow tables, in every way that data sets are kept on a disk."""

import json
import multiprocessing
import os
import sys

import pytest

from tinkit.device.pictures import Unreadable
from tinkit.errors import TinkitError
from tinkit.host.images import find_picture, list_pictures
from tinkit.host.images import tables as reading

pyarrow = pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "tinkit[data]"')
pytest.importorskip("pyarrow.parquet")

PICTURES = [b"picture %03d" % number * (number + 1) for number in range(25)]
HF_IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def table(pictures=PICTURES, column="image", kind=HF_IMAGE, **columns):
    values = [{"bytes": data, "path": None} for data in pictures] if kind == HF_IMAGE else pictures
    arrays = {"label": pyarrow.array(range(len(pictures))), column: pyarrow.array(values, kind), **columns}
    return pyarrow.table(arrays)


def write_parquet(path, made, rows=4):
    os.makedirs(path.parent, exist_ok=True)
    pyarrow.parquet.write_table(made, path, row_group_size=rows)
    return path


def write_stream(path, made, rows=4, compression=None):
    os.makedirs(path.parent, exist_ok=True)
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pyarrow.OSFile(str(path), "wb") as handle, pyarrow.ipc.new_stream(handle, made.schema, options=options) as out:
        out.write_table(made, max_chunksize=rows)
    return path


def write_file(path, made, rows=4):
    with pyarrow.OSFile(str(path), "wb") as handle, pyarrow.ipc.new_file(handle, made.schema) as out:
        out.write_table(made, max_chunksize=rows)
    return path


def bytes_of(source):
    return [picture.read() for picture in list_pictures(source).pictures]


@pytest.mark.parametrize("write", [write_parquet, write_stream, write_file])
@pytest.mark.parametrize("kind", [HF_IMAGE, pyarrow.binary(), pyarrow.large_binary()])
def test_rows_are_read_in_any_order(tmp_path, write, kind):
    ending = ".parquet" if write is write_parquet else ".arrow"
    path = write(tmp_path / ("a" + ending), table(kind=kind))
    pictures = list_pictures(path).pictures
    assert pictures[7].name == f"a{ending}#7"
    assert pictures[7].path == f"{path}#7"
    assert [pictures[number].read() for number in (24, 0, 7, 13, 7)] == [PICTURES[n] for n in (24, 0, 7, 13, 7)]
    assert [picture.read() for picture in pictures] == PICTURES
    assert find_picture(path, f"a{ending}#3").read() == PICTURES[3]


def test_a_compressed_stream_is_read_batch_by_batch(tmp_path):
    path = write_stream(tmp_path / "a.arrow", table(), compression="lz4")
    assert bytes_of(path) == PICTURES


def test_a_folder_of_tables_in_order_of_name(tmp_path):
    write_parquet(tmp_path / "data" / "train-1.parquet", table(PICTURES[10:]))
    write_parquet(tmp_path / "data" / "train-0.parquet", table(PICTURES[:10]))
    (tmp_path / "README.md").write_text("a data set")
    (tmp_path / "LICENSE").write_text("a file without an ending")
    listing = list_pictures(tmp_path)
    assert [picture.read() for picture in listing.pictures] == PICTURES
    assert listing.pictures[10].name == "data/train-1.parquet#0"
    assert listing.others == 2
    assert bytes_of(tmp_path / "data" / "train-{0..1}.parquet") == PICTURES


def test_a_data_set_saved_to_disk(tmp_path):
    for split, pictures in (("train", PICTURES[:20]), ("test", PICTURES[20:])):
        write_stream(tmp_path / split / "data-00000-of-00001.arrow", table(pictures))
        write_stream(tmp_path / split / "cache-0123.arrow", table(pictures))  # of a map(): the same pictures again
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "x"}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
        (tmp_path / split / "dataset_info.json").write_text("{}")
    assert bytes_of(tmp_path / "test") == PICTURES[20:]
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert bytes_of(tmp_path) == PICTURES
    assert list_pictures(tmp_path).pictures[0].name == "train/data-00000-of-00001.arrow#0"
    (tmp_path / "test" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../other.arrow"}]}))
    with pytest.raises(TinkitError, match="odd"):
        list_pictures(tmp_path)


def test_which_column_holds_the_pictures(tmp_path):
    mask = pyarrow.array([b"mask"] * 25)
    path = tmp_path / "a.parquet"
    assert bytes_of(write_parquet(path, table(column="Image", mask=mask))) == PICTURES
    assert bytes_of(write_parquet(path, table(column="scan"))) == PICTURES  # the only one that fits
    with pytest.raises(TinkitError, match="several columns") as caught:
        list_pictures(write_parquet(path, table(column="scan", mask=mask)))
    assert "scan" in caught.value.seen
    with pytest.raises(TinkitError, match="no column of pictures"):
        list_pictures(write_parquet(path, pyarrow.table({"label": [1, 2]})))


def test_an_empty_row_is_that_row_s_fault_and_a_path_is_followed(tmp_path):
    (tmp_path / "beside.jpg").write_bytes(b"beside")
    rows = [
        {"bytes": b"a", "path": "x.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "beside.jpg"},
    ]
    path = write_parquet(tmp_path / "a.parquet", pyarrow.table({"image": pyarrow.array(rows, HF_IMAGE)}))
    pictures = list_pictures(path).pictures
    assert [pictures[0].read(), pictures[3].read()] == [b"a", b"beside"]
    for number in (1, 2):
        with pytest.raises(Unreadable, match=f"row {number} has no picture"):
            pictures[number].read()


@pytest.mark.parametrize("write", [write_parquet, write_stream, write_file])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_a_cut_table_is_said(tmp_path, write, share):
    path = write(tmp_path / ("a.parquet" if write is write_parquet else "a.arrow"), table())
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(TinkitError, match="no usable picture") as caught:
        list_pictures(path)
    assert "damaged" in caught.value.seen
    write_parquet(tmp_path / "whole.parquet", table())
    listing = list_pictures(tmp_path)  # the others are used
    assert (len(listing.pictures), [name for name, _ in listing.lost]) == (len(PICTURES), [path.name])


def test_a_table_that_became_shorter_is_an_error_of_the_picture(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", table())
    last = list_pictures(path).pictures[-1]
    write_parquet(path, table(PICTURES[:3]))
    with pytest.raises(Unreadable, match="no row 24"):
        last.read()


def test_few_row_groups_stay_in_memory(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", table([bytes(1000)] * 40))
    pictures = list_pictures(path).pictures
    monkeypatch.setattr(reading, "KEPT_BYTES", 10_000)
    for picture in pictures:
        assert picture.read() == bytes(1000)
        assert sum(column.nbytes for column in reading._columns.values()) <= 10_000
    assert reading._columns


def _read_in_a_child(pictures, numbers, out):
    out.put([pictures[number].read() for number in numbers])


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_another_process_opens_its_own(tmp_path, ending, monkeypatch):
    path = (write_parquet if ending == ".parquet" else write_stream)(tmp_path / ("a" + ending), table())
    pictures = list_pictures(path).pictures
    assert pictures[3].read() == PICTURES[3]
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    child = context.Process(target=_read_in_a_child, args=(pictures, [24, 3], out))
    child.start()
    assert out.get(timeout=120) == [PICTURES[24], PICTURES[3]]
    child.join(60)
    monkeypatch.setattr(reading, "_owner", -1)  # as a fork finds it: another process's open files
    kept = reading._tables[str(path)]
    assert pictures[5].read() == PICTURES[5]
    assert reading._owner == os.getpid()
    assert reading._tables[str(path)] is not kept


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TinkitError, match="needs pyarrow") as caught:
        list_pictures(path)
    assert "tinkit[data]" in caught.value.next_step
