"""Rows and records of what is in the catalogues: models, devices, techniques. Plain values, SI units."""

from dataclasses import asdict
from typing import Any

from nearpeak.hardware import Cluster, Device, Node
from nearpeak.measure import Comparison, Measurement, compare
from nearpeak.report import format as write
from nearpeak.techniques import Technique
from nearpeak.workload import Architecture, Experts, parameters


def model_row(model: Architecture) -> dict[str, Any]:
    """One line about a model."""
    count = parameters(model)
    return {
        "model": model.name,
        "parameters": count.total,
        "active": count.active,
        "layers": model.layers,
        "hidden": model.hidden,
        "context": model.context,
        "weights": model.checkpoint.experts if _sparse(model) else model.checkpoint.ffn,
        "family": model.family,
    }


def model_record(model: Architecture) -> dict[str, Any]:
    """A model in full: counts by part, and its kinds of layers."""
    count = parameters(model)
    return {
        **model_row(model),
        "parameters_by_part": {name: getattr(count, name) for name in count.__dataclass_fields__},
        "checkpoint": vars(model.checkpoint),
        "blocks": [{"layers": b.count, "mixer": repr(b.mixer), "ffn": repr(b.ffn)} for b in model.blocks],
    }


def _sparse(model: Architecture) -> bool:
    return any(isinstance(b.ffn, Experts) for b in model.blocks)


def device_row(device: Device) -> dict[str, Any]:
    """One line about a device."""
    return {
        "device": device.name,
        "title": device.title,
        "bf16_flops": device.rates.get("bf16"),
        "fp8_flops": device.rates.get("fp8"),
        "fp4_flops": device.rates.get("fp4"),
        "memory": device.memory_capacity,
        "bandwidth": device.memory_bandwidth,
        "tdp": device.tdp,
        "price_per_hour": device.price_per_hour,
    }


def device_record(device: Device) -> dict[str, Any]:
    """A device in full, with the source of each figure."""
    plain = {name: getattr(device, name) for name in device.__dataclass_fields__}
    plain["rates"], plain["sparse_rates"] = dict(device.rates), dict(device.sparse_rates)
    plain["memory"] = [vars(level) for level in device.memory]
    plain["prices"] = [vars(price) for price in device.prices]
    plain["sources"] = dict(device.sources)
    return plain


def system_record(node: Node) -> dict[str, Any]:
    """A server in full, its parts by name."""
    plain = {name: getattr(node, name) for name in node.__dataclass_fields__}
    parts = {"device": node.device.name, "scale_up": node.scale_up.name}
    return plain | parts | {
        "network": node.network and node.network.name,
        "host": node.host and node.host.name,
    }  # fmt: skip


def cluster_record(cluster: Cluster) -> dict[str, Any]:
    """A whole machine: what follows from its parts and its network."""
    from nearpeak.hardware import topology

    power = topology.power_parts(cluster)
    full: dict[str, Any] = {
        "name": cluster.name,
        "title": cluster.title,
        "node": cluster.node.name,
        "nodes": cluster.count,
        "devices": cluster.devices,
        "fp64_tensor_flops": topology.peak_rate(cluster, "fp64_tensor"),
        "power": sum(power.values()),
        **{f"{part}_power": watts for part, watts in power.items()},
        "storage": [vars(tier) for tier in cluster.storage],
        "source": cluster.source,
    }
    if cluster.topology is not None:
        net = topology.network(cluster)
        full["switch_hops_at_most"] = int(topology.hops(net, 0).max())
        full["bisection_bandwidth"] = topology.bisection(net)
    return full


def technique_row(technique: Technique) -> dict[str, Any]:
    """One line about a technique."""
    return {
        "technique": technique.name,
        "what": technique.title,
        "slot": technique.slot,
        "quality_kept": f"{technique.quality.low:.3g} to {technique.quality.high:.3g}",
        "apply": "yes" if technique.command else "",
    }


def technique_record(technique: Technique) -> dict[str, Any]:
    """A technique in full."""
    return {
        **technique_row(technique),
        "paper": technique.paper,
        "row": technique.row,
        "quality_source": technique.quality.source,
        "command": technique.command and f"nearpeak apply MODEL_DIR {technique.command} --out OUT",
    }


def measurement_row(measurement: Measurement) -> dict[str, Any]:
    """One line about a measurement: what was run, and measured over predicted."""
    ratios = {c.name: c.ratio for c in compare(measurement)}
    what = measurement.what
    row: dict[str, Any] = {"id": measurement.id, "created": measurement.created[:19], "model": what.get("model")}
    row |= {name: what.get(name) for name in ("batch", "isl", "osl", "device", "dtype")}
    for name in ("ttft", "tpot"):
        figure = measurement.figures.get(name)
        row[name] = None if figure is None else figure.value
        row[f"{name}_over_predicted"] = ratios.get(name)
    return row


def measurement_record(measurement: Measurement) -> dict[str, Any]:
    """A measurement in full, without its single timings."""
    return {
        **measurement_row(measurement),
        "what": dict(measurement.what),
        "figures": {name: vars(f) for name, f in measurement.figures.items()},
        "predictions": {name: vars(p) for name, p in measurement.predictions.items()},
        "platform": asdict(measurement.fingerprint),
    }


def comparison_row(compared: Comparison) -> dict[str, str]:
    """One figure, predicted beside measured, as text."""
    predicted, measured = compared.predicted, compared.measured
    unit = write.size if compared.name == "memory" else write.seconds
    return {
        "figure": compared.name,
        "predicted": unit(predicted.value),
        "80 % interval": write.interval(predicted.low, predicted.high, unit),
        "measured": unit(measured.value),
        "of the median": write.interval(measured.low, measured.high, unit) if measured.high > measured.low else "once",
        "ratio": write.digits(compared.ratio),
        "inside": "yes" if compared.inside else "no",
        "evidence": predicted.evidence,
    }
