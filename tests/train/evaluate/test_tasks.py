"""Task files as people have them, and metrics against what is known of them."""

import json
import pathlib

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, strategies as st

from tokenizer_lab.errors import UserError
from train.evaluate.minimal_pairs import read_pairs
from train.evaluate.tasks import metrics, read_examples, read_task, task_name


def write(path, text):
    path.write_text(text)
    return path


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.jsonl", jsonl({"sentence": "a b", "label": 1}, {"sentence": "c\u2028d", "label": 0})),
        ("t.jsonl", "\n" + jsonl({"text": "a b", "label": "1"}, {"text": "c\u2028d", "label": "0", "idx": 3})),
        ("t.tsv", "a b\t1\nc\u2028d\t0\n"),
        ("t.tsv", "idx\tlabel\tsentence\n7\t1\ta b\n8\t0\tc\u2028d"),
    ],
)
def test_single_sentences(tmp_path, name, text):
    assert [(example.texts, example.label) for example in read_examples(write(tmp_path / name, text))] == [
        (("a b",), "1"),
        (("c\u2028d",), "0"),
    ]


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.jsonl", jsonl({"sentence1": "a", "sentence2": 'b"', "label": 2.5})),
        ("t.tsv", 'a\tb"\t2.5\n'),
        ("t.tsv", 'sentence2\tsentence1\tlabel\nb"\ta\t2.5\n'),
    ],
)
def test_pairs(tmp_path, name, text):
    [example] = read_examples(write(tmp_path / name, text))
    assert (example.texts, example.label) == (("a", 'b"'), "2.5")


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "t.jsonl",
            '{"sentence": "a", "label": 1}\n{"sentence": "b"}',
            "line 2: there should be 'label' and 'sentence'",
        ),
        ("t.jsonl", '{"sentence1": "a", "label": 1}', "line 1: there should be"),
        ("t.jsonl", "[1]", "line 1: there should be"),
        ("t.jsonl", "{", "line 1: not JSON"),
        ("t.jsonl", f'{{"sentence": "a", "label": {"9" * 5000}}}', "line 1: not JSON"),
        ("t.jsonl", '{"sentence": " ", "label": 1}', "line 1: the text is empty"),
        ("t.tsv", "a\tb\tc\td\n", "4 columns and no names"),
        ("t.tsv", "a\t1\nb\n", "line 2: 1 columns where there should be 2"),
        ("t.csv", "a,1", "neither .jsonl nor .tsv"),
        ("t.tsv", "", "leaves no examples to learn from"),
        ("t.jsonl", jsonl(*({"sentence": f"s{n}", "label": 1} for n in range(40))), "every example has the label '1'"),
        ("t.jsonl", jsonl(*({"sentence": f"s{n}", "label": n % 2} for n in range(3))), "be judged by"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_task(write(tmp_path / name, text), None)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot read"):
        read_task(tmp_path / "nowhere.tsv", None)


@pytest.mark.parametrize(
    "names, columns",
    [
        (("question", "sentence"), "index\tquestion\tsentence\tlabel"),
        (("text", "text_pair"), "text_pair\ttext\tlabel"),
        (("premise", "hypothesis"), "label\tpremise\thypothesis"),
        (("question1", "question2"), "id\tquestion1\tquestion2\tlabel"),
        (("sentence1", "sentence2"), "label\tsentence2\tsentence1"),
    ],
)
def test_both_texts_of_a_pair_are_taken_under_usual_names(tmp_path, names, columns):
    record = {"id": 7, "index": "8", names[0]: "a b", names[1]: "c", "label": "yes", "score": "0.5"}
    row = "\t".join(str(record[name]) for name in columns.split("\t"))
    for name, text in (("t.jsonl", jsonl(record)), ("t.tsv", f"{columns}\n{row}\n")):
        [example] = read_examples(write(tmp_path / name, text))
        assert (example.texts, example.label) == (("a b", "c"), "yes")


@pytest.mark.parametrize(
    "record, left_out",
    [
        ({"sentence": "a", "context": "b"}, "besides sentence there is text in context, which would be left out"),
        ({"text": "a", "title": "b", "body": "c"}, "besides text there is text in title, body,"),
        ({"sentence1": "a", "sentence2": "b", "genre": "c"}, "besides sentence1 and sentence2 there is text in genre,"),
        ({"text": "a", "label_text": "positive"}, "besides text there is text in label_text,"),
    ],
)
def test_text_that_would_be_left_out_is_named_and_can_be_chosen(tmp_path, record, left_out):
    record |= {"label": 1}
    tsv = "\t".join(record) + "\n" + "\t".join(map(str, record.values())) + "\n"
    for name, text in (("t.jsonl", jsonl(record)), ("t.tsv", tsv)):
        path = write(tmp_path / name, text)
        with pytest.raises(UserError, match=left_out) as error:
            read_examples(path)
        advised = str(error.value).partition("--fields ")[2].split()
        for fields in (advised, ["label_text"] if "label_text" in record else [*record][:1]):
            assert read_examples(path, fields)[0].texts == tuple(record[field] for field in fields)
        with pytest.raises(UserError, match="there should be 'label' and 'none'; there is .*--fields"):
            read_examples(path, ["none"])


def test_whole_numbers_are_one_label_however_they_are_written(tmp_path):
    labels = [0, 0.0, "0", "0.0", " 0. ", 1, 1.0, "1", "+1", "1.00", -1.0, "-1", 1e16, 10**16]
    text = jsonl(*({"sentence": f"text {number}", "label": label} for number, label in enumerate(labels)))
    found = [example.label for example in read_examples(write(tmp_path / "t.jsonl", text))]
    assert found == ["0"] * 5 + ["1"] * 3 + ["+1", "1"] + ["-1"] * 2 + [str(10**16)] * 2
    others = [2.5, "2.50", "007", "1.0.0", "v1.0", "nan", "0x0"]
    text = jsonl(*({"sentence": "text", "label": label} for label in others))
    assert [example.label for example in read_examples(write(tmp_path / "t.jsonl", text))] == [*map(str, others)]


@pytest.mark.parametrize("columns", ["label\tsentence", "sentence\tlabel", "idx\tlabel\tsentence"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, columns):
    """Before the first name of a .tsv, which else is none, so that its line is an example."""
    values = {"label": "1", "sentence": "a b", "idx": "7"}
    tsv = f"{columns}\n" + "\t".join(values[name] for name in columns.split("\t")) + "\n"
    for name, text in (("t.tsv", tsv), ("t.jsonl", jsonl({"sentence": "a b", "label": 1}))):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert [(example.texts, example.label) for example in read_examples(tmp_path / name)] == [(("a b",), "1")]


def test_a_label_that_training_never_saw_is_named(tmp_path):
    train = write(tmp_path / "train.tsv", "a\tyes\nb\tno\n")
    task = read_task(train, write(tmp_path / "dev.tsv", "c\tno\nd\tmaybe\n"))
    assert task.targets(task.train).tolist() == [1, 0]
    with pytest.raises(
        UserError, match=r"dev.tsv, line 2: label 'maybe' is in no training example, which have 'no', 'yes'"
    ):
        task.targets(task.dev)
    task = read_task(write(tmp_path / "train.tsv", "a\t0.5\nb\t2\n"), write(tmp_path / "dev.tsv", "c\tno\n"))
    with pytest.raises(UserError, match="label 'no' is no number"):
        task.targets(task.dev)
    with pytest.raises(UserError, match="the same columns"):
        read_task(train, write(tmp_path / "dev.tsv", "a\tb\tyes\n"))


@pytest.mark.parametrize("file, name", [("rte.train.jsonl", "rte"), ("SST2/train.tsv", "SST2"), ("mrpc.tsv", "mrpc")])
def test_a_task_is_named_by_its_file_or_folder(file, name):
    assert task_name(pathlib.Path(file)) == name


def test_kinds_of_labels_and_a_tenth_that_stays_the_same(tmp_path):
    rows = [f"text {number}\t{number % 3}\n" for number in range(400)]
    task = read_task(write(tmp_path / "task.tsv", "".join(rows)), None)
    assert task.labels == ("0", "1", "2") and task.name == "task" and task.num_outputs == 3
    assert 20 < len(task.dev) < 70 and len(task.dev) + len(task.train) == 400
    assert [e.texts for e in read_task(write(tmp_path / "task.tsv", "".join(reversed(rows))), None).dev] == [
        e.texts for e in reversed(task.dev)
    ]
    assert read_task(tmp_path / "task.tsv", None, "regression").labels == ()
    scores = write(tmp_path / "scores.tsv", "".join(f"text {number}\t{number / 4}\n" for number in range(40)))
    assert read_task(scores, None).labels == () and len(read_task(scores, None, "classification").labels) > 30


classes = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40)


@given(classes)
def test_metrics_of_classes_against_their_definitions(pairs):
    predicted, targets = map(np.array, zip(*pairs))
    found = metrics(predicted, targets, 3)
    assert found["accuracy"] == pytest.approx(np.mean(predicted == targets))
    f1 = []
    for label in range(3):
        right = np.sum((predicted == label) & (targets == label))
        precision, recall = right / max(1, np.sum(predicted == label)), right / max(1, np.sum(targets == label))
        f1.append(2 * precision * recall / (precision + recall) if right else 0)
    assert found["f1"] == pytest.approx(np.mean(f1))
    one_hot = [np.eye(3)[labels] for labels in (predicted, targets)]
    covariance = lambda x, y: np.sum((x - x.mean(0)) * (y - y.mean(0)))
    scale = np.sqrt(covariance(one_hot[0], one_hot[0]) * covariance(one_hot[1], one_hot[1]))
    assert found["matthews"] == pytest.approx(covariance(*one_hot) / scale if scale > 1e-9 else 0, abs=1e-9)


def test_metrics_of_two_classes_are_those_of_the_second():
    found = metrics(np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1]), 2)
    assert found == pytest.approx({"accuracy": 0.6, "f1": 2 / 3, "matthews": 1 / 6})


def test_metrics_of_numbers():
    predicted, targets = np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.0, 2.0, 3.0, 5.0])
    assert metrics(predicted, targets, 0) == pytest.approx(
        {"pearson": np.corrcoef(predicted, targets)[0, 1], "spearman": scipy.stats.spearmanr(predicted, targets)[0]}
    )
    assert metrics(np.ones(4), targets, 0) == {"pearson": 0.0, "spearman": 0.0}


def test_a_byte_order_mark_before_minimal_pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(jsonl({"sentence_good": "a b", "sentence_bad": "b a"}), encoding="utf-8-sig")
    assert read_pairs(path, 0) == {"pairs": [(b"a b", b"b a")]}
