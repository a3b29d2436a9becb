"""Options in groups, so that a long help can be read: data, model, training, output."""

import functools
from collections.abc import Callable
from typing import Any

import click


class GroupedOption(click.Option):
    """An option with the heading under which the help of a `GroupedCommand` lists it."""

    def __init__(self, *arguments: Any, group: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group, in the order of their first options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        others = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None or isinstance(parameter, click.Argument):
                continue
            if isinstance(parameter, GroupedOption):
                groups.setdefault(parameter.group, []).append(record)
            else:
                others.append(record)
        groups["Other options"] = others
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _options_of(group: str) -> Any:
    return functools.partial(click.option, cls=GroupedOption, group=group)


data_option = _options_of("Data")
model_option = _options_of("Model and adapter")
training_option = _options_of("Training")
output_option = _options_of("Output")


def collected(
    argument: str, *options: Callable[..., Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command several options as one argument: a mapping by their names."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        names: list[str] = []

        @functools.wraps(command)
        def with_mapping(**values: Any) -> Any:
            mapping = {name: values.pop(name) for name in names}
            return command(**{argument: mapping}, **values)

        before = len(getattr(with_mapping, "__click_params__", ()))
        for option in reversed(options):
            option(with_mapping)
        added = with_mapping.__click_params__[before:]  # type: ignore[attr-defined]
        names += [parameter.name for parameter in added]
        return with_mapping

    return decorate
