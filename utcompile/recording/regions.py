"""Regions of a graph: where gradients are switched off or on, and where autocast is entered and left."""

from __future__ import annotations

import sys
import types

import torch
from torch import fx
from torch.fx.node import Argument

from utcompile.graph import info
from utcompile.recording.active import Function
from utcompile.recording.derived import set_grad_enabled
from utcompile.recording.writer import Writer


class Regions:
    """The regions that a recording has entered and not yet left.

    Args:
        writer: writes the nodes that begin and end a region.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._grad_modes: list[tuple[bool, fx.Node, object]] = []

    def set_grad_enabled(self, enabled: bool) -> None:
        """`no_grad` and `enable_grad`: a node at the beginning, and one that restores the former mode at the end."""
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(enabled)
        how, owner = _context_manager(sys._getframe(2))
        modes = self._grad_modes
        if modes and (how == "__exit__" or (how != "__enter__" and modes[-1][0] == enabled != before)):
            entered = modes.pop()[1]
            self._region(set_grad_enabled, (entered,), entered)
        elif not (how == "__enter__" and modes and modes[-1][2] is owner):
            # one that changes nothing is recorded too: a later call may be made in the other mode
            modes.append((before, self._region(set_grad_enabled, (enabled,)), owner))

    def enter_autocast(self, *settings: Argument) -> fx.Node:
        """The beginning of an autocast region."""
        return self._region(torch.amp.autocast_mode._enter_autocast, settings)

    def exit_autocast(self, entered: fx.Node) -> None:
        """The end of an autocast region."""
        self._region(torch.amp.autocast_mode._exit_autocast, (entered,), entered)

    def _region(self, function: Function, args: tuple[Argument, ...], entered: fx.Node | None = None) -> fx.Node:
        """A node without a value; one that ends an empty region takes its beginning with it."""
        if entered is not None and entered.next.op == "root":
            self._writer.graph.erase_node(entered)
            return entered
        node = self._writer.call(function, args)
        info(node).region = True
        return node


def _context_manager(frame: types.FrameType) -> tuple[str, object]:
    """The method of `no_grad` or the like that switches gradients, and its object; some do by making another."""
    outer = frame.f_back
    if outer is not None and outer.f_code.co_filename == frame.f_code.co_filename:
        frame = outer
    return frame.f_code.co_name, frame.f_locals.get("self")
