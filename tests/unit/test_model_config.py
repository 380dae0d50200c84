"""config.pbtxt: what is honoured, what is refused, and what is reported because it is not honoured."""

from __future__ import annotations

import re

import pytest

from attnserve import model_config
from attnserve.batch_queue import Policy
from attnserve.errors import ConfigError
from attnserve.inference import model_config_pb2 as pb


@pytest.fixture
def read(tmp_path, config_text):
    """Reads a config.pbtxt: the one without fault, with pieces replaced and text added."""

    def run(more: str = "", **replacements: str):
        text = config_text
        for old, new in replacements.items():
            pattern = {"name": r'name: "net"', "backend": r"backend: .*", "batch": r"max_batch_size: .*",
                       "input": r"input .*", "output": r"output .*"}[old]  # fmt: skip
            text = re.sub(pattern, lambda _, new=new: new, text, count=1)
        folder = tmp_path / "net"
        folder.mkdir(exist_ok=True)
        (folder / "config.pbtxt").write_text(text + more, encoding="utf-8")
        return model_config.read(folder)

    return run


def test_a_plain_config_is_honoured_whole(read):
    config, ignored = read()
    assert ignored == []
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("net", 8, [2, 3, 3])
    assert (config.output[0].name, config.output[0].label_filename) == ("probabilities", "labels.txt")


def test_the_folder_names_a_model_that_does_not_name_itself(read):
    assert read(name="")[0].name == "net"


def test_what_is_honoured_is_not_reported(read):
    _, ignored = read("""
        version_policy { specific { versions: [ 1, 3 ] } }
        instance_group [ { count: 2 kind: KIND_CPU } ]
        default_model_filename: "model.onnx"
        parameters { key: "anything" value { string_value: "free" } }
        dynamic_batching { }
    """)
    assert ignored == []


@pytest.mark.parametrize(
    ("more", "reported"),
    [
        ("optimization { cuda { graphs: true } }", ["optimization is not honoured"]),
        ("optimization: { cuda { graphs: true } }", ["optimization is not honoured"]),
        ("optimization < cuda < graphs: true > >", ["optimization is not honoured"]),
        ("response_cache { enable: true }\nmodel_warmup [ { name: 'x' } ]\n",
         ["response_cache is not honoured", "model_warmup is not honoured"]),
        ("a: 1 b: 2 a: 3", ["a is not honoured", "b is not honoured"]),
        ("sequence_batching { direct { } control_input [ { name: 'START' } ] }", ["sequence_batching is not honoured"]),
        ('cc_model_filenames { key: "7.5" value: "model" }', ["cc_model_filenames is not honoured"]),
        ("metric_tags: { key: 'a' value: 'b' } metric_tags: { key: 'c' value: 'd' }", ["metric_tags is not honoured"]),
    ],
)  # fmt: skip
def test_an_unknown_field_is_reported_once_by_its_name(read, more, reported):
    config, ignored = read(more)
    assert ignored == reported
    assert config.max_batch_size == 8


@pytest.mark.parametrize(
    "more",
    [
        "# mystery { a comment }\nmystery: 1",
        'mystery: "not_this: 1"',
        "mystery: 'nor { this: 1'",
        'mystery: "an escaped \\" and { nothing: 1"',
        "mystery: 'an escaped \\' and } nothing: 1'",
        'mystery: "a # that is no comment" # and one: { that is',
        "mystery { deeper { known: 1 unknown: [ 2, 3 ] list [ { x: 1 }, { y: 2 } ] } }",
        "mystery < deeper < unknown: 1 > >",
        "mystery: [ { unknown: 1 }, { unknown: 2 } ]",
        "mystery: ONE",
        "mystery: -1.5e3",
        "mystery\n:\n1",
        "mystery: 1; ",
        'parameters { key: "}{" value { string_value: "unknown: 1" } } mystery: 1',
        "# \"an open string in a comment\nmystery: 1 # 'another",
    ],
)
def test_comments_strings_and_nesting_confuse_nothing(read, more):
    assert read(more)[1] == ["mystery is not honoured"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"more": "instance_group [ { count: 1 passive: true } ]"}, ["passive"]),
        ({"more": "instance_group [ { count: 1 passive: true } ]\noptimization { }"}, ["passive", "optimization"]),
        ({"more": "optimization { }\ninstance_group [ { profile: 'a' passive: true } ]"},
         ["optimization", "profile", "passive"]),
        ({"more": "dynamic_batching { preserve_order: true priority_queue_policy { key: 1 } }"},
         ["preserve_order", "priority_queue_policy"]),
        ({"input": 'input { name: "images" data_type: TYPE_UINT8 dims: [ 2, 3, 3 ] reshape { shape: [ 18 ] } }'},
         ["reshape"]),
    ],
)  # fmt: skip
def test_unknown_fields_inside_known_ones_are_reported_too_every_one(read, changes, names):
    ignored = " ".join(read(**changes)[1])
    assert [name for name in names if name not in ignored] == []


@pytest.mark.parametrize(
    ("more", "reported"),
    [
        ("dynamic_batching { first: 2, preserve_ordering: true }", ["first", "dynamic_batching.preserve_ordering"]),
        ("instance_group [ { passive: true; count: 1 } ]", ["passive"]),
        ("mystery: 1, other: 2, third: 3", ["mystery", "other", "third"]),
        ("mystery: 1; other { }; third: [ ];", ["mystery", "other", "third"]),
    ],
)  # fmt: skip
def test_fields_may_be_separated_by_commas_and_semicolons(read, more, reported):
    assert [sentence.split()[0] for sentence in read(more)[1]] == reported


@pytest.mark.parametrize("more", ["mystery: 'one ' \"string\"", "mystery: 'one '\n  'string'\nmax_batch_size: 8"])
def test_a_string_in_pieces_is_one_value(read, more):
    assert read(more, batch="" if "max_batch_size" in more else "max_batch_size: 8")[1] == ["mystery is not honoured"]


@pytest.mark.parametrize("character", ["\u2028", "\x0c", "\x85", "\x0b", "\x1c"])
def test_a_comment_may_hold_any_character(read, character):
    assert read(f"# a{character}b\nmystery: 1\n")[1] == ["mystery is not honoured"]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ("dynamic_batching { preserve_ordering: true }", "dynamic_batching.preserve_ordering"),
        ("dynamic_batching { default_queue_policy { timeout_action: DELAY } }", "default_queue_policy.timeout_action"),
        (
            "dynamic_batching { default_queue_policy { allow_timeout_override: true } }",
            "default_queue_policy.allow_timeout_override",
        ),
        ('default_model_filename: "other.onnx"', "default_model_filename"),
        ("instance_group [ { count: 1 }, { count: 2 } ]", "only the first instance_group"),
        ("instance_group [ { kind: KIND_GPU gpus: [ 1 ] } ]", "instance_group.gpus"),
    ],
)
def test_a_known_field_that_changes_nothing_is_reported(read, more, name):
    (sentence,) = read(more)[1]
    assert sentence.startswith(name)


def test_how_batches_are_formed_is_read_from_dynamic_batching(read):
    config, ignored = read(
        "dynamic_batching { preferred_batch_size: [ 8, 4 ] max_queue_delay_microseconds: 1500"
        " priority_levels: 5 default_priority_level: 3 }"
    )
    assert ignored == []
    assert model_config.policy_of(config) == Policy(8, (4, 8), max_queue_delay_s=0.0015, levels=5)
    assert model_config.default_level_of(config) == 3


def test_without_dynamic_batching_there_are_three_classes_and_the_middle_one_is_the_default(read):
    config, _ = read()
    assert (model_config.policy_of(config), model_config.default_level_of(config)) == (Policy(8, levels=3), 2)


@pytest.mark.parametrize(
    ("batching", "message"),
    [
        ("preferred_batch_size: 9", "preferred_batch_size must be within 1..8"),
        ("preferred_batch_size: 0", "preferred_batch_size must be within 1..8"),
        ("max_queue_delay_microseconds: 60000001", "max_queue_delay_microseconds must be at most 60 s"),
        ("priority_levels: 17 default_priority_level: 1", "priority_levels must be at most 16"),
        ("default_priority_level: 4", "default_priority_level must be within 1..3"),
        ("priority_levels: 4", "default_priority_level must be within 1..4"),
        ("priority_levels: 4 default_priority_level: 5", "default_priority_level must be within 1..4"),
    ],
)
def test_batching_that_cannot_be_done_is_refused(read, batching, message):
    with pytest.raises(ConfigError, match=message):
        read(f"dynamic_batching {{ {batching} }}")


def test_a_format_that_contradicts_ours_is_not_silently_ignored(read):
    try:
        _, ignored = read(input='input { name: "images" data_type: TYPE_UINT8 format: FORMAT_NCHW dims: [ 2, 3, 3 ] }')
    except ConfigError:
        return
    assert "format" in " ".join(ignored)


IMAGES = 'name: "images" data_type: TYPE_UINT8 dims: [ 2, 3, 3 ]'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 'name: "other"'}, "name 'other' is not the folder's, 'net'"),
        ({"backend": 'backend: "python"'}, "only backend \"onnxruntime\" is served, not 'python'"),
        ({"backend": 'platform: "tensorrt_plan"'}, "only backend \"onnxruntime\" is served, not 'tensorrt_plan'"),
        ({"more": 'platform: "tensorrt_plan"'}, "only backend \"onnxruntime\" is served, not 'tensorrt_plan'"),
        ({"batch": ""}, "max_batch_size must be positive, got 0"),
        ({"batch": "max_batch_size: -1"}, "max_batch_size must be positive, got -1"),
        ({"input": ""}, 'needs exactly one input, "images" TYPE_UINT8'),
        ({"input": f"input [ {{ {IMAGES} }}, {{ {IMAGES} }} ]"}, 'needs exactly one input, "images" TYPE_UINT8'),
        ({"input": f"input {{ {IMAGES.replace('images', 'image')} }}"}, 'needs exactly one input, "images" TYPE_UINT8'),
        ({"input": f"input {{ {IMAGES.replace('UINT8', 'FP32')} }}"}, 'needs exactly one input, "images" TYPE_UINT8'),
        ({"input": f"input {{ {IMAGES.replace('3, 3', '3, 1')} }}"}, "dims [ height, width, 3 ], got [2, 3, 1]"),
        ({"input": f"input {{ {IMAGES.replace('2, 3, 3', '3')} }}"}, "dims [ height, width, 3 ], got [3]"),
        ({"output": ""}, 'the first output must be "probabilities" TYPE_FP32'),
        ({"output": 'output { name: "logits" data_type: TYPE_FP32 dims: 2 }'},
         'the first output must be "probabilities" TYPE_FP32'),
        ({"output": 'output { name: "probabilities" data_type: TYPE_FP16 dims: 2 }'},
         'the first output must be "probabilities" TYPE_FP32'),
        ({"more": "instance_group { count: -1 }"}, "instance_group count must not be negative"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_served_is_refused_by_file_and_field(read, changes, message):
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert str(caught.value).endswith(message)
    assert "net/config.pbtxt: " in str(caught.value)


@pytest.mark.parametrize(
    "more",
    [
        "max_batch_size",
        "name: 5",
        "input {",
        "}",
        "max_batch_size: 9",
        "instance_group { kind: KIND_MODEL }",
        '"',
        "mystery {",
    ],
)
def test_text_that_is_no_config_is_refused_with_its_place(read, more):
    with pytest.raises(ConfigError, match=r"config\.pbtxt: .*\d+:\d+"):
        read(more)


def test_a_missing_file_is_refused_by_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"net/config\.pbtxt"):
        model_config.read(tmp_path / "net")


def test_a_file_that_is_no_text_is_refused_by_its_name(tmp_path):
    (tmp_path / "config.pbtxt").write_bytes(b'name: "\xff\xfe"')
    with pytest.raises(ConfigError, match=r"config\.pbtxt"):
        model_config.read(tmp_path)


def test_the_kind_of_an_instance_group_is_read(read):
    config, _ = read("instance_group [ { kind: KIND_CPU count: 3 } ]")
    assert (config.instance_group[0].kind, config.instance_group[0].count) == (pb.ModelInstanceGroup.KIND_CPU, 3)


def test_a_config_of_endless_unknown_fields_is_refused_soon(read):
    with pytest.raises(ConfigError, match="256 or more fields"):
        read("".join(f"invented{i}: 1\n" for i in range(5000)))
