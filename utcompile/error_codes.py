"""The codes of errors: one per kind of problem, with what it means and what to do. `docs/errors.md` is made from them.

A code stays the same when the text of a message changes, so a program can tell errors apart by `error.code`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

UNKNOWN = "other"  # of an error that gives no code, such as one of a custom tuner


class Meaning(NamedTuple):
    """What a code stands for.

    Attributes:
        what: the problem, in one sentence.
        fix: what to do about it.
    """

    what: str
    fix: str


AREAS: Mapping[str, str] = MappingProxyType(
    {
        "arguments": "Arguments of public functions",
        "capture": "Capturing a model",
        "call": "Calling a captured, tuned or folded model",
        "rule": "Reading rules",
        "match": "Matching rules with a model",
        "tuner": "Options and shapes of tuners",
        "tune": "Inserting tuners",
        "parts": "Parts of a model (`within=`) and regions of a graph",
        "memory": "Memory in training",
        "checkpoint": "Checkpoints and tasks",
        "peft": "Exchange with PEFT",
        "fold": "Folding",
        "export": "Exporting to ONNX",
        "onnx": "Running an ONNX file",
        "data": "Reading training data",
        "train": "Training",
        "model": "Choosing a model on the command line",
        "report": "Pages and comparisons",
        "path": "Files and folders",
        "extend": "Registering operations, tuners and folds",
    }
)

CODES: Mapping[str, Meaning] = MappingProxyType(
    {
        "arguments/type": Meaning(
            "An argument has a type that the function does not take.",
            "Pass what the message names. `utc.fold` takes what `utc.compile` returned, `utc.match` what `utc.capture` returned.",
        ),
        "arguments/unknown": Meaning(
            "A function was called with an argument that it does not have.",
            "Correct the name; the message suggests one.",
        ),
        "arguments/value": Meaning(
            "An argument has a value outside of what is allowed.", "Choose one of the values in the message."
        ),
        "capture/inputs": Meaning(
            "The example inputs do not fit the model's forward.",
            "Pass the inputs with which you call the model: a tuple, or a dict by parameter names.",
        ),
        "capture/dynamic": Meaning(
            "`dynamic=` does not fit the example inputs.",
            "Name dimensions of inputs that exist, with equal sizes for equal names.",
        ),
        "capture/forward-failed": Meaning(
            "The model's own forward raised an error while it was recorded.",
            "Run the model on the example inputs; if that works, choose another example size or pin the size that the message names.",
        ),
        "capture/unsupported": Meaning(
            "The model contains something that a graph cannot express.",
            "Follow the message: capture before scripting, initialise lazy weights, load without offloading, rename a part.",
        ),
        "capture/state": Meaning(
            "The model's forward changes Python state from call to call, so that no graph computes what it computes.",
            "Keep the state in buffers, or reset it before each call.",
        ),
        "capture/differs": Meaning(
            "The captured graph does not compute what the model computes.",
            "Report it, with the model. The capture is refused, and nothing was changed.",
        ),
        "call/guard": Meaning(
            "A call differs from the captured example in something by which the model's Python code decides.",
            "Capture again with an example of the kind that the message names, or call as at capture.",
        ),
        "call/inputs": Meaning(
            "A call does not fit the inputs of the captured model.", "Pass the inputs that the model was captured with."
        ),
        "rule/not-found": Meaning(
            "There is no rule file or shipped rule set of this name.", "`utcompile rules list` shows the shipped ones."
        ),
        "rule/yaml": Meaning("A rule file is not valid YAML 1.2.", "Correct the line and column in the message."),
        "rule/too-large": Meaning("A rule file, or a text in it, is larger than what is read.", "Make it smaller."),
        "rule/schema": Meaning(
            "A key of a rule file is missing, unknown, or has a value of the wrong kind.",
            "Correct it; the rule language is described in the documentation.",
        ),
        "rule/unknown-name": Meaning(
            "A rule names a pattern, tuner, rule, capture or variable that does not exist.",
            "Correct the name; the message suggests one.",
        ),
        "rule/name-taken": Meaning("Two things in a rule file have one name.", "Rename one of them."),
        "rule/unused": Meaning("A declared tuner or variable is never used.", "Use it, or remove it."),
        "rule/pattern": Meaning(
            "The text of a pattern cannot be read, or could match anything.", "Correct it where the message points."
        ),
        "rule/where": Meaning(
            "A condition in `where:` cannot be read or computed.", "Correct it where the message points."
        ),
        "rule/include": Meaning(
            "An included rule file cannot be used.", "Correct the path, the name or the circle that the message names."
        ),
        "rule/variable": Meaning(
            "A variable has no plain value, or is used where it cannot be.",
            "Give it a number, a text, a boolean or a list.",
        ),
        "match/nothing": Meaning(
            "No rule found a place in the model.",
            "Look at what is there with `utcompile explain`; the message lists near misses and patterns that were found instead.",
        ),
        "match/count": Meaning(
            "A rule found more or fewer places than its `expect:` says.",
            "Correct the rule or the expectation; `utcompile explain` shows the places.",
        ),
        "match/effort": Meaning(
            "A pattern needs more attempts than allowed.", "Make the pattern more specific, or scope it by `in:`."
        ),
        "match/place": Meaning(
            "The tuner cannot be inserted at a place that was matched.",
            "Narrow the rule, choose another form, or set `on_refusal: skip` for it.",
        ),
        "match/weights": Meaning(
            "The weight that a rule tunes is unclear, tied, quantised, or cannot be sliced as asked.",
            "Follow the message; a `parallel` insertion needs no weight.",
        ),
        "match/overlap": Meaning("Two rules tune the same parameter.", "Let only one of them match it."),
        "match/train": Meaning(
            "`train:` names something that the model does not have.",
            "Name modules, parameters or patterns of the model.",
        ),
        "match/no-module": Meaning(
            "There is no module of this name in the model.", "Correct the name; the message suggests one."
        ),
        "tuner/unknown": Meaning("There is no tuner of this kind.", "Correct the name, or register the tuner."),
        "tuner/option": Meaning(
            "An option of a tuner has a value that does not fit.", "Choose a value as the message says."
        ),
        "tuner/does-not-fit": Meaning(
            "A tuner does not apply to this kind of layer or value.", "Choose another tuner or another place."
        ),
        "tuner/too-large": Meaning(
            "A tuner would need more parameters than fit into memory.", "Choose a smaller rank or length."
        ),
        "tune/not-tunable": Meaning(
            "The weights of this layer cannot be tuned in this model.",
            "Leave the layer out, or use a `parallel` insertion.",
        ),
        "tune/no-gradient": Meaning(
            "No gradient reaches a tuner, or it is not finite.", "Move the tuner to where an output depends on it."
        ),
        "tune/not-identity": Meaning(
            "An untrained tuner that declares itself the identity changes the outputs.",
            "Set `identity_at_start = False` on the tuner, or initialise its last factor with zeros.",
        ),
        "tune/order": Meaning("Two insertions depend on each other.", "Remove one of them."),
        "tune/wrapped": Meaning(
            "A wrapped or distributed model was given where the tuned module is needed.",
            "Pass the `TunedModule` inside.",
        ),
        "tune/disabled": Meaning("`disable_tuners` is active where it cannot be.", "Call outside of `disable_tuners`."),
        "parts/not-found": Meaning(
            "A glob names no submodule of the model.", "Correct the path; the message names the nearest ones."
        ),
        "parts/not-called": Meaning(
            "A part of a model is never called on the example inputs.",
            "Name what the model's `forward` calls, or give example inputs with which the part is called.",
        ),
        "parts/overlap": Meaning("A part lies inside another one.", "Name the outer one, or the inner ones."),
        "parts/signatures": Meaning(
            "A part is called in several ways that no one graph allows.",
            "Name its submodules, or the submodules of its callers.",
        ),
        "parts/shared": Meaning(
            "A parameter that is tuned or trained, or lies in a region, is used elsewhere too.",
            "Let one part or region contain all its uses, exclude it, or untie it in the model.",
        ),
        "parts/region": Meaning(
            "A region of a graph cannot be a module: it is left and entered again, or writes into what others read.",
            "Name the module around it, or leave it out.",
        ),
        "parts/unsupported": Meaning(
            "The code around a part needs more of it than its calls, or the part cannot be a graph.",
            "Name the submodules that this code calls.",
        ),
        "memory/budget": Meaning(
            "A memory budget cannot be read, or is below what is possible.",
            "Give a share such as 0.5 or a size such as '8GB'; the message names the least possible.",
        ),
        "memory/inputs": Meaning(
            "The memory of a step cannot be planned with these inputs.",
            "Pass inputs that the module can be called with.",
        ),
        "memory/prefix": Meaning(
            "The module has no frozen prefix that can be cut off.", "Train it whole, or compile as the message says."
        ),
        "checkpoint/damaged": Meaning(
            "A checkpoint's tensors or manifest cannot be read, or do not belong together.", "Use an intact copy."
        ),
        "checkpoint/not-found": Meaning(
            "The folder contains no checkpoint.", "Give a folder that `utc.save_tuners` or `utcompile train` wrote."
        ),
        "checkpoint/format": Meaning(
            "The checkpoint was written in a format that this version does not read.",
            "Install the version that wrote it, or a newer one.",
        ),
        "checkpoint/other-base": Meaning(
            "The checkpoint was trained on another base model.", "Load the base that the manifest names."
        ),
        "checkpoint/other-sites": Meaning(
            "The checkpoint's sites or tuners are not the model's.",
            "Compile with the rules and variables that the checkpoint was trained with.",
        ),
        "checkpoint/shape": Meaning(
            "A tensor of the checkpoint has another shape or kind of dtype than the model's.",
            "Build the model as it was when the checkpoint was trained.",
        ),
        "checkpoint/write": Meaning(
            "A checkpoint cannot be written.", "Free space, or choose another folder; the old files are intact."
        ),
        "checkpoint/task": Meaning("There is no task of this name, or there is one already.", "Use another name."),
        "peft/config": Meaning("PEFT's configuration cannot be read.", "Save it again with PEFT."),
        "peft/tensors": Meaning(
            "Tensors of a PEFT checkpoint do not fit its configuration or the model.",
            "Use the base that the checkpoint was trained on.",
        ),
        "peft/unsupported": Meaning(
            "PEFT computes something here that utcompile does not, or the reverse.",
            "Use the format of `utc.save_tuners`, or leave the site out.",
        ),
        "fold/kept": Meaning(
            "Tuners could not be folded, and `strict=True` requires it.",
            "Accept `kept` tuners, or choose tuners that fold; the report gives a reason per site.",
        ),
        "fold/not-proven": Meaning(
            "The folded model could not be compared with the tuned one, or differs.",
            "Give `check_inputs=` with real samples, or report it. The tuned model is as it was.",
        ),
        "fold/inputs": Meaning(
            "`check_inputs=` does not fit the model.", "Pass tuples or dicts as in a call of the model."
        ),
        "export/inputs": Meaning(
            "The inputs to export with do not fit the model, or have no batch.",
            "Pass example inputs with a batch dimension, or name `batch_inputs`.",
        ),
        "export/outputs": Meaning(
            "The model's outputs are not tensors.", "Export a model that returns tensors in tuples, lists or dicts."
        ),
        "export/fixed-size": Meaning(
            "A dimension that should be dynamic is fixed by the model or the exporter.",
            "Capture with the size dynamic, or export with it fixed.",
        ),
        "export/tasks": Meaning(
            "A file with several tasks cannot be made or used so: a task, its run or its adapter does not fit.",
            "Follow the message; `utc.add_task` writes an adapter again.",
        ),
        "export/unsupported": Meaning("The model cannot be expressed in ONNX.", "Follow the message."),
        "export/disagrees": Meaning(
            "ONNX Runtime and PyTorch disagree.", "Report it, with the model. No file was left behind."
        ),
        "onnx/file": Meaning("The ONNX file does not exist, is not valid, or cannot be opened.", "Use an intact file."),
        "onnx/inputs": Meaning("The inputs given do not fit the ONNX file.", "Pass the inputs that the message lists."),
        "onnx/runtime": Meaning(
            "ONNX Runtime failed, did not finish, or lacks what the call needs.", "Follow the message."
        ),
        "data/not-found": Meaning(
            "There is no data at this path, or no class folder or image in it.",
            "Give a folder of class folders, or an .npz file.",
        ),
        "data/damaged": Meaning("A data file cannot be read.", "Use an intact copy."),
        "data/changed": Meaning(
            "The data changed since the run was trained, so its held-out samples are not known any more.",
            "Bring the data back, or name others with -d.",
        ),
        "data/shape": Meaning(
            "Arrays have shapes, dtypes or values that do not fit.", "Save them as the message says."
        ),
        "data/labels": Meaning(
            "Labels do not fit the samples, the classes or one another.", "Correct them as the message says."
        ),
        "data/tokenizer": Meaning(
            "The tokenizer is missing, cannot be read, or does not fit the model.",
            "Give the local folder of the tokenizer that the model was trained with.",
        ),
        "train/settings": Meaning(
            "A training setting is out of range or does not exist.", "Choose a value as the message says."
        ),
        "train/needs": Meaning("A package that training needs is not installed.", "pip install 'utcompile[train]'"),
        "train/model": Meaning(
            "The model cannot be trained by this loop.", "Follow the message, or use your own loop."
        ),
        "train/loss": Meaning("The loss is not finite.", "Lower the learning rate, or use another precision."),
        "train/task": Meaning(
            "The task of a run does not fit its loss, its metrics or its data.",
            "Follow the message; `task=` of the recipe names the task.",
        ),
        "train/run": Meaning(
            "The run folder cannot be used: it is taken, damaged, or belongs to other settings.",
            "Choose another folder, or `--resume`.",
        ),
        "model/unknown": Meaning("There is no model of this name.", "Correct the name; the message suggests one."),
        "model/build": Meaning(
            "The model cannot be built.", "Follow the message; it contains the library's own reason."
        ),
        "model/weights": Meaning(
            "Weights cannot be loaded into the model.", "Give weights that belong to it, or `--no-pretrained`."
        ),
        "model/trust": Meaning(
            "Building the model would run code that the run names.", "Look at the code, then pass `--trust`."
        ),
        "report/comparison": Meaning(
            "A comparison has no method that fits, or its folder is of a comparison with other settings.",
            "Name rules that fit the model (`utcompile explain`); go on with the same settings, or give another folder.",
        ),
        "path/taken": Meaning(
            "The result would replace or lie in something that is to be kept.",
            "Choose another path, or pass `--overwrite` where it is offered.",
        ),
        "report/history": Meaning(
            "A run has no history that can be read, so there is nothing to draw.",
            "Name the folder that `utcompile train -o` wrote; a damaged history is written anew by `--resume`.",
        ),
        "path/invalid": Meaning(
            "A path does not exist, is of another kind, or cannot be written or read.",
            "Correct the path or its permissions.",
        ),
        "extend/operation": Meaning("An operation cannot be registered.", "Follow the message."),
        "extend/tuner": Meaning(
            "A tuner class cannot be registered or used.",
            "Follow the message; the contract is in the documentation of tuners.",
        ),
        "extend/fold": Meaning(
            "A fold cannot be registered, or does not keep its contract.",
            "Follow the message; the contract is in the documentation of folding.",
        ),
    }
)
