"""Which ONNX nodes a layer of onnxruntime stands for: fused nodes are renamed, so names alone do not tell.

onnxruntime writes down the graph that it runs. Its tensors keep the names of the ONNX graph at most places where layers
meet, and what lies between the tensors that a layer reads and the one that it writes are the nodes that it computes. Where a
tensor was renamed, its old name is looked for in four places, all seen in onnxruntime 1.31 [ran]: a layer NAME_nchwc is called
after the tensor that it wrote, a tensor may be called after the node that wrote it, NODE/SomeFusion is called after one of its
nodes, and a Reshape put behind a Gemm writes what the Gemm did. What is found nowhere stays without nodes; nothing is guessed.
"""

from tinkit.device.onnx_nodes import MOVERS

BLOCKED = "_nchwc"  # layouts of a CPU's own


def nodes_of_layers(graph, ran):
    """name of a layer -> [names of ONNX nodes, in the graph's order], [] where no node of the graph can be named.

    graph: the `Graph` of the ONNX file; ran: that of onnxruntime's own, of which names that occur twice are left out.
    """
    layers = _once(ran.nodes)
    known = _known_tensors(graph, ran, layers)
    named = {layer.name: _node_named(graph, layer.name) for layer in layers}
    borders = {tensor for layer in layers for tensor in _meanings(layer.outputs, known)}
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    found = {}
    for layer in layers:
        others = {node.name for name, node in named.items() if node is not None and name != layer.name}
        wrote = _meanings(layer.outputs, known) - _meanings(layer.inputs, known)  # the same twice: it only moves it
        nodes = nodes_between(graph, wrote, borders - wrote, others)
        if not nodes and named[layer.name] is not None:
            nodes = {named[layer.name].name}
        found[layer.name] = sorted(nodes, key=lambda name: order[name])
    return found


def _once(layers):
    counts = {}  # type: dict
    for layer in layers:
        counts[layer.name] = counts.get(layer.name, 0) + 1
    return [layer for layer in layers if counts[layer.name] == 1]


def _meanings(tensors, known):
    return {known[name] for name in tensors if name in known}


def _known_tensors(graph, ran, layers):
    """tensor of onnxruntime's graph -> tensor of the ONNX graph, of those that are computed from the picture."""
    known = {}
    for layer in layers:
        for name in layer.outputs:
            stem = layer.name[: -len(BLOCKED)] if layer.name.endswith(BLOCKED) else ""
            if name in graph.writer:
                known[name] = name
            elif stem in graph.writer and len(layer.outputs) == 1:
                known[name] = stem
            elif name in graph.by_name:
                known[name] = graph.by_name[name].outputs[0]
    for layer in reversed(layers):  # what a layer that only moves values wrote was computed by the one before it
        moved = [name for name in layer.inputs if name in ran.writer and name not in ran.constants]
        wrote = known.get(layer.outputs[0]) if len(layer.outputs) == 1 else None
        only_moves = layer.op_type in MOVERS and layer.name not in graph.by_name
        if only_moves and wrote is not None and len(moved) == 1 and graph.writer[wrote].op_type not in MOVERS:
            known.setdefault(moved[0], wrote)
    for layer in layers:
        node = _node_named(graph, layer.name)
        if node is not None and len(layer.outputs) == 1:
            known.setdefault(layer.outputs[0], node.outputs[0])
    return known


def _node_named(graph, name):
    """The ONNX node that a layer is called after: its own name, or what stands before a slash."""
    while name:
        if name in graph.by_name:
            return graph.by_name[name]
        name = name.rpartition("/")[0]
    return None


def nodes_between(graph, wrote, borders, others):
    """Names of the nodes on the way back from the tensors `wrote`, up to the `borders` and nodes of other layers."""
    found, waiting = set(), list(wrote)
    while waiting:
        tensor = waiting.pop()
        node = graph.writer.get(tensor)
        if node is None or tensor in borders or tensor in graph.constants or node.name in found or node.name in others:
            continue
        found.add(node.name)
        waiting.extend(node.inputs)
    return found
