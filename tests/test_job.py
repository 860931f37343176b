"""Options: declared once on their fields; the command line, job files, Python and docs/options.md agree on them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine
from engine import command_line
from engine.diffusion import solvers
from engine.job import GROUPS, RunOptions, SampleJob, taken_by
from engine.models.card import CONDITIONS, read_card
from engine.options import FLAG, SIZE
from engine.parsing import OPTIONS, options_markdown, parse, parser, to_yaml
from engine.planning.cover import cover_of, window_weights
from engine.planning.names import COVERS, WEIGHTS

ROOT = Path(__file__).parents[1]
EVERY = """
--model m --size 100x200 --count 3 --labels a.png --label 0,2 --labels-scale spread --labels-table t.csv
--resize-labels nearest --label-model lm --prompt tumour --label-steps 7 --label-guidance 2 --embeddings e.npy
--region-embeddings r.npy --grid 4x5 --pitch 256 --interpolation corner --map m.npy --instances i.npy
--rows 160 --region-rows n.npy --grid-order columns --border-nuclei keep --colors c.png --nucleus-color 1,2,3
--background-color 4,5,6 --style a,b --style-map s.png --image k.png --mask w.png
--strength 0.4 --start inverted --steps 30 --sections 10,20
--solver ddim --eta 0.5 --guidance 1.5 --omega -0.5
--guidance-interval 2:9 --roi roi.png --cover strided --stride 12 --weights hann --seed 4611686018427387904
--batch-size 4 --dtype bfloat16 --compile --device cpu --shard 1024 --chunk 256 --decode-overlap 0
--decode-weights gaussian --map-ids ade20k --least-area 30 --torn-nuclei split --appearance a.png
--appearance-order preserved --appearance-mask am.png --pairing matched --pairing-seed 42
--accept 0.6,0.5 --accept-rounds 9 --threads 2 --out o.zarr --scratch work --preview none --report --overwrite
--plane p.zarr --region=-8:16,0:9 --hold 4 --no-keep-levels --continue c.zarr
--resume never --verify --mend --checkpoint-every 0 --live 0.5 --json-log l.jsonl --dry-run --json --measure --ranks 64
"""
# What these were when every option was said three times: an unfinished output of then goes on only if they stay.
PLAIN: dict = {
    "model": "m",
    "size": [100, 200],
    "count": 3,
    "labels": "a.png",
    "label": [0, 2],
    "labels_scale": "spread",
    "labels_table": "t.csv",
    "resize_labels": "nearest",
    "label_model": "lm",
    "prompt": "tumour",
    "label_steps": 7,
    "label_guidance": 2.0,
    "embeddings": "e.npy",
    "region_embeddings": "r.npy",
    "grid": [4, 5],
    "rows": 160,
    "region_rows": "n.npy",
    "grid_order": "columns",
    "pitch": 256,
    "interpolation": "corner",
    "map": "m.npy",
    "instances": "i.npy",
    "border_nuclei": "keep",
    "map_ids": "ade20k",
    "least_area": 30,
    "torn_nuclei": "split",
    "appearance": "a.png",
    "appearance_order": "preserved",
    "appearance_mask": "am.png",
    "pairing": "matched",
    "pairing_seed": 42,
    "colors": "c.png",
    "nucleus_color": [1, 2, 3],
    "background_color": [4, 5, 6],
    "style": "a,b",
    "style_map": "s.png",
    "image": "k.png",
    "continue_": "c.zarr",
    "mask": "w.png",
    "strength": 0.4,
    "start": "inverted",
    "steps": 30,
    "sections": [10, 20],
    "solver": "ddim",
    "eta": 0.5,
    "guidance": 1.5,
    "omega": -0.5,
    "guidance_interval": [2, 9],
    "roi": "roi.png",
    "cover": "strided",
    "stride": 12,
    "weights": "hann",
    "seed": 2**62,
    "batch_size": 4,
    "dtype": "bfloat16",
    "compile": True,
    "device": "cpu",
    "shard": 1024,
    "chunk": 256,
    "decode_overlap": 0,
    "decode_weights": "gaussian",
    "accept": "0.6,0.5",
    "accept_rounds": 9,
    "threads": 2,
}
DEFAULTS = {
    "model": "embedded",
    "size": [1024, 1024],
    "grid_order": "rows",
    "border_nuclei": "refuse",
    "nucleus_color": [122, 84, 156],
    "background_color": [226, 190, 213],
    "cover": "shifted",
    "weights": "uniform",
    "seed": 0,
    "dtype": "float32",
    "compile": False,
    "device": "auto",
    "shard": 2048,
    "chunk": 512,
    "decode_weights": "smooth",
    "threads": 1,
}
FILES = {"model", "labels", "label_model", "embeddings", "region_embeddings", "map", "instances", "colors", "style"}
FILES |= {"continue_", "appearance", "appearance_mask", "style_map", "image", "mask", "roi", "labels_table"}
UNNEEDED = {"resize_labels", "labels_scale", "prompt", "device", "rows", "region_rows", "grid_order"}


def kinds(values):
    return {name: (type(value), value) for name, value in values.items()}


# ---- three ways in ----------------------------------------------------------------------------


def test_values_and_identity_are_what_they_were_before_options_were_declared_on_fields(tiny_model):
    card = read_card(str(tiny_model))
    nothing, everything = parse([])[0], parse(EVERY.split())[0]
    assert kinds(nothing.plain()) == kinds({**dict.fromkeys(PLAIN), **DEFAULTS})
    assert kinds(everything.plain()) == kinds(PLAIN)
    hashed = {name: value for name, value in PLAIN.items() if name not in FILES | UNNEEDED}
    assert everything.identity(card, {"labels_hash": "x"}) == {**hashed, "model_hash": card.hash, "labels_hash": "x"}


def test_the_values_of_a_run_are_what_they_were():
    assert kinds(dataclasses.asdict(parse([])[1])) == kinds(
        {
            "out": "sample.zarr",
            "scratch": None,
            "preview": None,
            "report": False,
            "plane": None,
            "region": None,
            "hold": 3,
            "keep_levels": True,
            "overwrite": False,
            "resume": "auto",
            "verify": False,
            "mend": False,
            "checkpoint_every": 300.0,
            "live": None,
            "json_log": None,
            "dry_run": False,
            "json": False,
            "measure": False,
            "ranks": None,
        }
    )
    assert kinds(dataclasses.asdict(parse(EVERY.split())[1])) == kinds(
        {
            "out": "o.zarr",
            "scratch": "work",
            "preview": "none",
            "report": True,
            "plane": "p.zarr",
            "region": (-8, 0, 16, 9),
            "hold": 4,
            "keep_levels": False,
            "overwrite": True,
            "resume": "never",
            "verify": True,
            "mend": True,
            "checkpoint_every": 0.0,
            "live": 0.5,
            "json_log": "l.jsonl",
            "dry_run": True,
            "json": True,
            "measure": True,
            "ranks": 64,
        }
    )


def test_text_of_the_command_line_and_values_of_python_give_the_same_job():
    from_text = SampleJob(
        size="100x200", label="0,2", nucleus_color="1,2,3", guidance_interval="2:9", seed="3", eta="0.5"
    )
    from_values = SampleJob(
        size=[100, 200], label=[0, 2], nucleus_color=[1, 2, 3], guidance_interval=[2, 9], seed=3, eta=0.5
    )
    assert from_text == from_values == dataclasses.replace(from_values)
    assert kinds(from_text.plain()) == kinds(from_values.plain())
    assert hash(from_text) == hash(from_values)


def test_one_number_is_the_size_of_a_square():
    assert SampleJob(size="1024") == SampleJob(size=1024) == SampleJob(size="1024x1024")


def test_labels_are_taken_by_name(tiny_model):
    card = read_card(str(tiny_model))
    assert SampleJob(label="carcinoma").resolved(card) == SampleJob(label=1).resolved(card)
    several = SampleJob(label="tumour stroma, 2,unknown", count=3)
    assert several.resolved(card) == SampleJob(label=(3, 2, 0), count=3).resolved(card)
    with pytest.raises(ValueError, match="did you mean 'necrosis'"):
        SampleJob(label="necrosi").resolved(card)


def test_paths_and_numbers_of_numpy_are_taken_from_python():
    import numpy as np

    one = SampleJob(labels=Path("a") / "b.png", size=(np.int64(64), 80), seed=np.uint8(3), guidance=np.float32(1.5))
    assert kinds(one.plain()) == kinds(SampleJob(labels="a/b.png", size=(64, 80), seed=3, guidance=1.5).plain())


WRONG = [
    ("cover", "diagonal", "expected one of shifted, random, strided"),
    ("solver", "magic", "expected one of ddim, ddpm, dpmpp2m, euler, plms"),
    ("batch_size", "0", "expected 1 or more"),
    ("batch_size", "65537", "expected 65536 or less"),
    ("size", "256x", "expected HxW in whole pixels, such as 1024x1536, or 1024 for a square"),
    ("size", "0x5", "expected a height and width of 1 px up to 2147483648 px"),
    ("eta", "1.5", "expected a number from 0 to 1"),
    ("guidance", "nan", "expected a number from 0 upwards"),
    ("label", "64", "expected 63 or less; a label, or several separated by commas"),
    ("nucleus_color", "1,2", "expected red, green and blue, such as 120,80,150"),
    ("guidance_interval", "9:2", "expected a first level below the last, such as 5:20"),
    ("labels", "", "expected a path or name"),
    ("ranks", "0", "expected 1 or more"),
    ("checkpoint_every", "-3", "expected a number from 0 upwards"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_value_is_refused_in_the_same_words_wherever_it_comes_from(tmp_path, name, value, expected):
    kind = SampleJob if name in PLAIN else RunOptions
    (tmp_path / "job.yaml").write_text(f"{name}: '{value}'\n")
    said = []
    for way in (
        lambda: kind(**{name: value}),
        lambda: dataclasses.replace(kind(), **{name: value}),
        lambda: parse([command_line.flag_of(name), value]),
        lambda: parse(["--job", str(tmp_path / "job.yaml")]),
    ):
        with pytest.raises(ValueError, match="expected") as refused:
            way()
        said.append(str(refused.value))
    assert said[:3] == [f"`{name}` is {value!r}: {expected}"] * 3
    assert said[3] == f"{tmp_path / 'job.yaml'}: {name} is {value!r}: {expected}"
    assert command_line.as_flags(said[0]) == f"{command_line.flag_of(name)} is {value!r}: {expected}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2.0),
        ("batch_size", True),
        ("size", None),
        ("seed", None),
        ("compile", "yes"),
        ("compile", 1),
        ("guidance", "much"),
        ("guidance", [1, "x"]),
        ("guidance", []),
        ("label", []),
        ("cover", None),
        ("cover", ["shifted"]),
        ("labels", 3),
        ("guidance_interval", 320),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_from_python(name, value):
    with pytest.raises(ValueError, match=rf"^`{name}` is .*: expected"):
        SampleJob(**{name: value})


@pytest.mark.parametrize("value", ["x10", "1x2x3", "1.5x2", "10x", [1], 1.5, [1, 2.0], None, True, "0x5"])
def test_sizes_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="expected"):
        SIZE.read(value)


# ---- job files --------------------------------------------------------------------------------


def test_a_job_goes_to_yaml_and_back(tmp_path):
    whole = SampleJob(size=(1000, 1544), steps=30, eta=0.5, cover="strided", stride=12, seed=2**62, label=2)
    for one in (whole, parse(EVERY.split())[0]):
        (tmp_path / "job.yaml").write_text(to_yaml(one))
        assert parse(["--job", str(tmp_path / "job.yaml")])[0] == one


def test_options_override_the_job_file(tmp_path):
    (tmp_path / "job.yaml").write_text("steps: 30\nlabels: map.png\nout: a.zarr\nsize: [64, 80]\n")
    one, options = parse(["--job", str(tmp_path / "job.yaml"), "--steps", "7", "--label", "1"])
    assert (one.steps, one.label, one.labels, one.size) == (7, 1, None, (64, 80))
    assert options.out == "a.zarr"


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_job_files_of_the_project_can_be_read(file):
    assert f"out: {parse(['--job', str(file)])[1].out}" in file.read_text()


# ---- declarations, help and documentation -----------------------------------------------------


def test_every_field_of_a_job_and_of_a_run_declares_an_option():
    named = {field.name for kind in (SampleJob, RunOptions) for field in dataclasses.fields(kind)}
    assert named == set(OPTIONS) == set(PLAIN) | {field.name for field in dataclasses.fields(RunOptions)}
    assert {option.group for option in OPTIONS.values()} == set(GROUPS)
    assert {kind for option in OPTIONS.values() for kind in option.models} <= set(CONDITIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_default_passes_its_own_check_and_its_text_can_be_given(name):
    option = OPTIONS[name]
    for value in (option.default, option.fallback):
        if value is not None:
            assert option.kind.read(value) == value
            assert option.kind is FLAG or option.kind.read(option.kind.show(value)) == value


def test_options_of_a_kind_of_model_are_those_that_it_takes():
    labels = ("labels", "label", "labels_scale", "labels_table", "resize_labels")
    assert taken_by("label-map") == (*labels, "label_model", "prompt", "label_steps", "label_guidance")
    assert taken_by("class") == (*labels, "embeddings")
    listed = ("grid", "rows", "region_rows", "grid_order")
    assert taken_by("embedding") == ("embeddings", "region_embeddings", *listed, "pitch", "interpolation")
    assert taken_by("none") == ()


def test_names_that_options_offer_are_those_that_the_engine_knows():
    for name in COVERS:
        cover_of(name, (64, 64), 32, 0, 0, stride=16, weights="uniform")
    for name in WEIGHTS:
        window_weights(name, 8)
    for name in solvers.SOLVERS:
        solvers.steps_of(name, (0.5,), 0.0, False)


def test_help_has_every_option_in_its_group_with_its_default():
    groups = {group.title: group for group in parser()._action_groups}
    for option in OPTIONS.values():
        action = next(a for a in groups[option.group]._group_actions if a.dest == option.name)
        flag = command_line.flag_of(option.name)
        assert action.option_strings == ([flag, f"--no-{flag[2:]}"] if option.default is True else [flag])
        assert action.help.endswith(f"(default: {command_line.as_flags(option.default_text)})")
    words = " ".join(parser().format_help().split())
    for said in ("(default: 1024x1024)", "(default: 122,84,156)", "(default: the model's, or 50)", "(default: no)"):
        assert said in words
    assert "`" not in words


def test_the_docstrings_name_every_field():
    for documented in (SampleJob, RunOptions):
        for field in dataclasses.fields(documented):
            assert f"\n        {field.name}: " in documented.__doc__


def test_the_documentation_of_the_options_is_current():
    said = (ROOT / "docs" / "options.md").read_text()
    assert said == options_markdown(), "run python -m engine.parsing > docs/options.md"
    rows = [line for line in said.splitlines() if line.startswith("| `--")]
    assert len(rows) == len(OPTIONS)
    assert all(line.count("|") in (5, 6) for line in rows)


# ---- the model's defaults ---------------------------------------------------------------------


def test_the_models_defaults_fill_what_a_job_leaves_open(tiny_model):
    card = read_card(str(tiny_model))
    one = SampleJob(steps=3).resolved(card)
    assert one.steps == 3
    assert one.guidance == card.defaults["guidance"]
    assert None not in (one.solver, one.eta, one.batch_size, one.decode_overlap)


def test_the_fields_fallbacks_fill_what_the_model_leaves_open_too(tiny_model):
    card = dataclasses.replace(read_card(str(tiny_model)), defaults={"steps": 7, "eta": 0.5})
    one = SampleJob().resolved(card)
    assert (one.steps, one.solver, one.eta, one.guidance, one.batch_size, one.decode_overlap) == (
        7,
        "ddim",
        0.5,
        1,
        8,
        16,
    )
    assert SampleJob(solver="ddpm").resolved(card).eta == 0  # the model's eta is that of ddim
    assert SampleJob(eta=0).resolved(card).eta == 0
    assert SampleJob(omega=2).resolved(card).guidance == 3
    assert SampleJob(cover="strided").resolved(card).stride == card.patch // 2


def test_a_model_has_one_guidance_weight_by_default(tiny_model):
    for several in ([1, 2], "1,2"):
        card = dataclasses.replace(read_card(str(tiny_model)), defaults={"guidance": several})
        with pytest.raises(ValueError, match=r"card\.json: of its defaults `guidance` is .*: expected one value"):
            SampleJob(count=2).resolved(card)


def test_a_models_wrong_default_names_its_file(tiny_model):
    card = dataclasses.replace(read_card(str(tiny_model)), defaults={"steps": "many"})
    with pytest.raises(ValueError, match=r"card\.json: of its defaults `steps` is 'many': expected a whole number"):
        SampleJob().resolved(card)


@pytest.mark.parametrize(
    ("wrong", "fields"),
    [
        ({"cover": "shifted", "stride": 4}, ["`stride` is 4", "`cover` strided"]),
        ({"cover": "strided", "stride": 999}, ["`stride` is 999", "gaps"]),
        ({"guidance": 2, "omega": 1}, ["`guidance` 2", "`omega` 1"]),
        ({"eta": 0.5, "solver": "euler"}, ["`eta` is 0.5", "`solver` euler", "`solver` ddim"]),
        ({"shard": 100}, ["`shard` is 100", "`chunk` 512"]),
        ({"label": 1, "labels": "a.png"}, ["`labels` a.png", "`label` 1"]),
        ({"label": (0, 1)}, ["`label` 0,1", "`count` N"]),
        ({"prompt": "x"}, ["`prompt` x", "`label_model` DIR"]),
        ({"image": "a.png"}, ["`image`", "`mask`"]),
        ({"roi": "a.png", "count": 2}, ["`roi` a.png", "`count`"]),
        ({"accept": "0.5"}, ["`accept` 0.5", "`count` N"]),
        ({"grid": (2, 3)}, ["`grid` 2x3", "label-map", "`labels`"]),
        ({"border_nuclei": "keep"}, ["`border_nuclei` keep", "label-map"]),
        ({"steps": 5, "guidance_interval": (2, 9)}, ["`guidance_interval` is 2:9", "5 levels"]),
    ],
)
def test_settings_that_do_not_go_together_are_named_as_fields(tiny_model, wrong, fields):
    with pytest.raises(ValueError, match="`") as refused:
        SampleJob(**wrong).resolved(read_card(str(tiny_model)))
    for part in fields:
        assert part in str(refused.value)
    assert "--" not in str(refused.value)


def test_guidance_of_a_model_without_a_null_is_refused_by_the_name_it_was_given_by(tiny_model):
    card = dataclasses.replace(read_card(str(tiny_model)), has_null=False, defaults={})
    for name, value in (("guidance", 2), ("omega", 1)):
        with pytest.raises(ValueError, match=f"^`{name}` is {value} but"):
            SampleJob(**{name: value}).resolved(card)
    assert SampleJob(guidance=1).resolved(card).guidance == SampleJob(omega=0).resolved(card).guidance == 1


def test_what_changes_no_byte_is_not_part_of_a_jobs_identity(tiny_model):
    card = read_card(str(tiny_model))
    one = SampleJob().resolved(card)
    assert "model" not in one.identity(card, {"labels_hash": "x"})
    assert one.identity(card, {"labels_hash": "x"}) != one.identity(card, {"labels_hash": "y"})
    assert one.identity(card, {"labels_hash": "x"}) != SampleJob(seed=1).resolved(card).identity(
        card, {"labels_hash": "x"}
    )


# ---- what is said before anything heavy is imported -------------------------------------------

HEAVY = ("numpy", "torch", "zarr", "mpi4py", "yaml", "h5py", "PIL")


def python(*arguments, **extra):
    path = {"PYTHONPATH": str(ROOT)} | extra
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT.parent, env={**os.environ, **path}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments",
    ["engine.sample --help", "engine.sample --version", "engine.train image --help", "engine.models.convert --help"],
)
def test_help_and_version_import_nothing_heavy(arguments):
    code = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module(sys.argv[1], run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        f"    loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "    sys.exit(f'{end.code} {loaded}' if end.code or loaded else 0)\n"
    )
    module, *rest = arguments.split()
    done = python("-c", code.replace("sys.argv[1]", repr(module)), *rest)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_version_stands_in_one_place():
    assert python("-m", "engine.sample", "--version").stdout == f"slidefield {engine.__version__}\n"
    assert not python("-m", "engine.sample", "--version", PMI_RANK="1").stdout  # rank 0 says it for all
    assert engine.__version__ not in (ROOT / "setup.py").read_text()
    named = subprocess.run([sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert named.stdout.split()[-1:] == [engine.__version__], named.stderr


@pytest.mark.parametrize("first", [["-m", "engine.sample", "--version"], ["-c", "import engine.verify"]], ids=str)
def test_another_package_called_kernels_is_refused_in_one_line(tmp_path, first):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("print('theirs was imported')\n")
    done = python(*first, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert not done.stdout  # theirs was not imported
    *trace, line = done.stderr.splitlines()
    assert f"another package `kernels` ({tmp_path / 'kernels' / '__init__.py'})" in line
    assert f"put {ROOT} first on PYTHONPATH" in line
    assert not trace or first[0] == "-c"  # a command says it in one line; a program of somebody's gets its traceback


def test_sections_say_how_many_levels_there_are(tiny_model):
    card = read_card(str(tiny_model))
    job = SampleJob(sections="10,15,20").resolved(card)
    assert (job.steps, job.sections) == (45, (10, 15, 20))
    assert len(card.schedule.timesteps(job.steps, job.sections)) == 45
    assert SampleJob(sections=[10, 15], steps=25).resolved(card).steps == 25
    for settings, said in (
        ({"sections": "10,15", "steps": 30}, "`sections` 10,15 are 25 levels but `steps` is 30"),
        ({"sections": "2000"}, "2000 levels in part 1 of 1, which has 1000"),
    ):
        with pytest.raises(ValueError, match=said):
            SampleJob(**settings).resolved(card)
    for wrong in ("10,", "0", "a", "", []):
        with pytest.raises(ValueError, match="`sections`"):
            SampleJob(sections=wrong)


def test_published_means_are_those_of_the_card(tiny_model):
    card = read_card(str(tiny_model))
    with pytest.raises(ValueError, match="has no class_means"):
        SampleJob(count=2, accept="published").resolved(card)
    with_means = dataclasses.replace(card, class_means=(0.5, 0.2913, 0.1, 0.2, 0.3))
    assert SampleJob(count=2, accept="published").resolved(with_means).accept == "0.5,0.2913,0.1,0.2,0.3"
    with pytest.raises(ValueError, match="`accept_rounds` is 3 but every image is kept"):
        SampleJob(count=2, accept_rounds=3).resolved(card)
