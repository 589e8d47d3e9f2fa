"""What people read: tables on a terminal, a page with plots, and rows about what is in the catalogues.

Here lives all formatting of figures (``format``). Nothing is computed here that a plan does not hold, but for the
places of a plan's operators under the roofline. Names are loaded when they are used, so that importing the room costs
nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearpeak.report.catalogue import (
        cluster_record,
        comparison_row,
        device_record,
        device_row,
        measurement_record,
        measurement_row,
        model_record,
        model_row,
        system_record,
        technique_record,
        technique_row,
    )
    from nearpeak.report.html import page, write_page
    from nearpeak.report.printing import (
        print_explanation,
        print_miss,
        print_plans,
        print_prediction,
        print_record,
        print_serving_plans,
        print_table,
    )
    from nearpeak.report.roof import roofline
    from nearpeak.report.tables import front_table, miss_text, plans_table, predict_table, table, why

__all__ = [
    "cluster_record",
    "comparison_row",
    "device_record",
    "device_row",
    "front_table",
    "measurement_record",
    "measurement_row",
    "miss_text",
    "model_record",
    "model_row",
    "page",
    "plans_table",
    "predict_table",
    "print_explanation",
    "print_miss",
    "print_plans",
    "print_prediction",
    "print_record",
    "print_serving_plans",
    "print_table",
    "roofline",
    "system_record",
    "table",
    "technique_record",
    "technique_row",
    "why",
    "write_page",
]

_ROOM = {
    "catalogue": (
        "cluster_record",
        "comparison_row",
        "device_record",
        "device_row",
        "measurement_record",
        "measurement_row",
        "model_record",
        "model_row",
        "system_record",
        "technique_record",
        "technique_row",
    ),
    "html": ("page", "write_page"),
    "printing": (
        "print_explanation",
        "print_miss",
        "print_plans",
        "print_prediction",
        "print_record",
        "print_serving_plans",
        "print_table",
    ),
    "roof": ("roofline",),
    "tables": ("front_table", "miss_text", "plans_table", "predict_table", "table", "why"),
}
_HOMES = {name: module for module, names in _ROOM.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (what a module holds is of any type)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
