"""Loading plugins, so that one bad plugin is reported by name and never hides the others.

pluggy's own entry-point loader stops at the first broken import and skips duplicate names in silence; hence this loop.
Hooks are called one plugin at a time for the same reason.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pluggy

from prunebench import hookspecs
from prunebench.errors import PluginError, PruneBenchError, UnknownName, typed_line
from prunebench.hookspecs import PROJECT

__all__ = ["KINDS", "PluginInfo", "Plugins", "Registered", "get_plugins", "reset_plugins"]

KINDS = ("strategies", "models", "datasets", "suites", "evaluators", "executors")


@dataclass
class PluginInfo:
    """What is known of one plugin: where it came from, and what went wrong if something did."""

    name: str
    origin: str
    version: str | None = None
    distribution: str | None = None
    provides: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        return "error" if self.errors else "ok"


@dataclass(frozen=True)
class Registered:
    """One thing that a plugin registered: the object, its name, and whose it is."""

    name: str
    value: Any
    plugin: str


class Plugins:
    """The plugins of this process, and the registries that they fill.

    Args:
        files: unpackaged plugin files (``--plugin``).
        only: names of entry points to load; None loads all (``PRUNEBENCH_PLUGINS``, comma-separated).
    """

    def __init__(self, files: Iterable[str | Path] = (), only: Iterable[str] | None = None) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.infos: dict[str, PluginInfo] = {}
        self._registries: dict[str, dict[str, Registered]] = {}
        self._load_entry_points(None if only is None else set(only))
        for path in files:
            self._load_file(Path(path))

    # -- loading -----------------------------------------------------------------------------------------------------

    def _load_entry_points(self, only: set[str] | None) -> None:
        entry_points = importlib.metadata.entry_points(group=PROJECT)
        seen: set[tuple[str, str]] = set()
        for entry_point in sorted(entry_points, key=lambda e: (e.name, e.value)):
            if (entry_point.name, entry_point.value) in seen:
                continue  # the same distribution found twice on the path
            seen.add((entry_point.name, entry_point.value))
            if only is not None and entry_point.name not in only:
                continue
            dist = entry_point.dist
            info = PluginInfo(
                name=entry_point.name,
                origin=entry_point.value,
                version=dist.version if dist else None,
                distribution=dist.name if dist else None,
            )
            self._add(info, entry_point.load)
        if only is not None:
            found = {entry_point.name for entry_point in entry_points}
            for name in sorted(only - found):
                self.infos[name] = PluginInfo(
                    name, "PRUNEBENCH_PLUGINS", errors=[str(UnknownName("plugin", name, found))]
                )

    def _load_file(self, path: Path) -> None:
        info = PluginInfo(name=path.stem, origin=str(path))

        def load() -> Any:
            if not path.is_file():
                raise PluginError(f"no such plugin file: {path}")
            # A name of its own, so that a file called like an installed package cannot shadow it.
            digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
            module_name = f"prunebench_file_{path.stem}_{digest}"
            spec = importlib.util.spec_from_file_location(module_name, path)
            if spec is None or spec.loader is None:
                raise PluginError(f"not a Python file: {path}")
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module  # dataclasses look their module up there
            try:
                spec.loader.exec_module(module)
            except BaseException:
                sys.modules.pop(module_name, None)
                raise
            return module

        self._add(info, load)

    def _add(self, info: PluginInfo, load: Callable[[], Any]) -> None:
        if info.name in self.infos:
            first = self.infos[info.name]
            key = f"{info.name} (from {info.origin})"
            info.errors.append(
                f"duplicate plugin name {info.name!r}: already loaded from {first.origin}; this one is left out"
            )
            self.infos[key] = info
            return
        self.infos[info.name] = info
        try:
            module = load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit at import
            info.errors.append(f"cannot be imported: {typed_line(error)}")
            return
        try:
            self.manager.register(module, name=info.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            info.errors.append(f"wrong hook signature: {typed_line(error)}")
            # pluggy keeps the hooks that validated before the bad one; take them all out again.
            if self.manager.get_plugin(info.name) is not None:
                self.manager.unregister(name=info.name)
            return
        known = {name for name in dir(hookspecs) if name.startswith("prunebench_")}
        callers = self.manager.get_hookcallers(module) or []
        for unknown in sorted({caller.name for caller in callers} - known):
            info.errors.append(str(UnknownName("hook", unknown, known)))

    # -- calling -----------------------------------------------------------------------------------------------------

    def each(self, hook: str, **arguments: Any) -> Iterable[tuple[PluginInfo, Any]]:
        """Call one hook plugin by plugin; a failure is noted with its plugin and the next one is called."""
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            info = self.infos[implementation.plugin_name]
            try:
                wanted = {name: arguments[name] for name in implementation.argnames}
                yield info, implementation.function(**wanted)
            except KeyboardInterrupt:
                raise
            except (Exception, SystemExit) as error:
                note = f"{hook}: {typed_line(error)}"
                if note not in info.errors:
                    info.errors.append(note)

    def registry(self, kind: str) -> dict[str, Registered]:
        """All that is registered of one kind ("strategies", "models", ...), by name and alias."""
        if kind not in self._registries:
            self._registries[kind] = self._fill(kind)
        return self._registries[kind]

    def _fill(self, kind: str) -> dict[str, Registered]:
        registry: dict[str, Registered] = {}
        for implementation in getattr(self.manager.hook, f"prunebench_register_{kind}").get_hookimpls():
            info = self.infos[implementation.plugin_name]

            def register(value: Any, name: str | None = None, *, _info: PluginInfo = info) -> None:
                try:
                    pairs = _named(kind, value, name)
                except PruneBenchError as error:  # one bad object does not cost the plugin its other ones
                    _info.errors.append(f"{kind}: {error}")
                    return
                for each_name, each_value in pairs:
                    if each_name in registry:
                        owner = registry[each_name].plugin
                        _info.errors.append(
                            f"{kind}: the name {each_name!r} is already taken by plugin {owner!r}; left out"
                        )
                        continue
                    registry[each_name] = Registered(each_name, each_value, _info.name)
                    _info.provides.append(f"{kind}:{each_name}")

            try:
                implementation.function(register)
            except KeyboardInterrupt:
                raise
            except (Exception, SystemExit) as error:
                info.errors.append(f"prunebench_register_{kind}: {typed_line(error)}")
        return registry

    def get(self, kind: str, name: str) -> Any:
        """The registered object, or UnknownName with the nearest one."""
        registry = self.registry(kind)
        if name not in registry:
            raise UnknownName({"strategies": "strategy"}.get(kind, kind[:-1]), name, registry)
        return registry[name].value

    def load_all(self) -> None:
        """Fill every registry, so that `infos` shows all that each plugin provides and every error."""
        for kind in KINDS:
            self.registry(kind)


def _named(kind: str, value: Any, name: str | None) -> list[tuple[str, Any]]:
    """(name, value) pairs that one ``register`` call adds; raises PluginError on something that does not fit."""
    if kind == "suites":
        from prunebench.suites import suite_files

        return [(path.stem, path) for path in suite_files(Path(value))]
    from prunebench.adapter import ModelAdapter
    from prunebench.dataset import Dataset
    from prunebench.evaluator import Evaluator
    from prunebench.executor import Executor
    from prunebench.strategy import Strategy

    base = {
        "strategies": Strategy,
        "models": ModelAdapter,
        "datasets": Dataset,
        "evaluators": Evaluator,
        "executors": Executor,
    }[kind]
    if not (isinstance(value, type) and issubclass(value, base)):
        raise PluginError(f"{kind} must be subclasses of {base.__name__}, got {value!r}")
    missing = sorted(getattr(value, "__abstractmethods__", ()))
    if missing:
        raise PluginError(f"{value.__name__} does not implement {', '.join(missing)}")
    own = name or getattr(value, "name", None)
    if not isinstance(own, str) or not own:
        raise PluginError(f"{value.__name__} has no `name`")
    check = getattr(value, "check_class", None)
    if check is not None:
        check()
    return [(own, value), *((alias, value) for alias in getattr(value, "aliases", ()))]


_current: Plugins | None = None


def get_plugins(files: Iterable[str | Path] | None = None) -> Plugins:
    """The plugins of this process; giving `files` loads anew with those files added."""
    global _current
    if _current is None or files:
        allowed = os.environ.get("PRUNEBENCH_PLUGINS")
        only = None if allowed is None else [name.strip() for name in allowed.split(",") if name.strip()]
        _current = Plugins(files or (), only)
    return _current


def reset_plugins() -> None:
    """Forget the loaded plugins (tests, and programs that install plugins while they run)."""
    global _current
    _current = None
