"""YAML text to typed, validated rules; the pattern parser; the named patterns."""

from utcompile.rules.files import shipped_rules
from utcompile.rules.globs import glob_match
from utcompile.rules.json_schema import json_schema, shipped_kinds
from utcompile.rules.library import library_patterns
from utcompile.rules.model import (
    Expect,
    ExpectedSites,
    Insertion,
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
    TunerSpec,
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
    "Attribute",
    "Call",
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
    "Train",
    "TunerSpec",
    "glob_match",
    "json_schema",
    "library_patterns",
    "shipped_kinds",
    "shipped_rules",
]
