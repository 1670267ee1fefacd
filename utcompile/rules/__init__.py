"""YAML text to typed, validated rules; the pattern parser; the named patterns."""

from utcompile.rules.editor_schema import json_schema, shipped_kinds
from utcompile.rules.files import shipped_rules
from utcompile.rules.globs import glob_match
from utcompile.rules.insertions import (
    AnyInsertion,
    ChainInsertion,
    Insertion,
    TokensInsertion,
    TunerSpec,
    ValueInsertion,
    WeightInsertion,
)
from utcompile.rules.library import library_patterns
from utcompile.rules.measured import Measured
from utcompile.rules.model import (
    Expect,
    ExpectedSites,
    Match,
    MatchModule,
    MatchOperation,
    MatchParameter,
    MatchPattern,
    Rule,
    RuleTest,
    Scope,
    Select,
    Train,
)
from utcompile.rules.names import CLASSES, OPERATIONS
from utcompile.rules.ruleset import RuleSet
from utcompile.rules.syntax import (
    Attribute,
    Call,
    Comparison,
    Expression,
    Head,
    Literal,
    Mark,
    Name,
    Operand,
    Path,
    Pattern,
    Product,
    Spelling,
    Step,
)

__all__ = [
    "CLASSES",
    "OPERATIONS",
    "AnyInsertion",
    "Attribute",
    "Call",
    "ChainInsertion",
    "Comparison",
    "Expect",
    "ExpectedSites",
    "Expression",
    "Head",
    "Insertion",
    "Literal",
    "Mark",
    "Match",
    "MatchModule",
    "MatchOperation",
    "MatchParameter",
    "MatchPattern",
    "Measured",
    "Name",
    "Operand",
    "Path",
    "Pattern",
    "Product",
    "Rule",
    "RuleSet",
    "RuleTest",
    "Scope",
    "Select",
    "Spelling",
    "Step",
    "TokensInsertion",
    "Train",
    "TunerSpec",
    "ValueInsertion",
    "WeightInsertion",
    "glob_match",
    "json_schema",
    "library_patterns",
    "shipped_kinds",
    "shipped_rules",
]
