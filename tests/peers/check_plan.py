# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The planner against PyTorch: a VGG16 of torch.nn, and what really is allocated for it."""

import torch
from support import check

BLOCKS = [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]]
BYTES = {"f32": 4, "f16": 2, "bf16": 2}
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def build(classes):
    """The layers by Keras' names, in order; without the top where there are no classes."""
    layers = {}
    channels = 3
    for block, widths in enumerate(BLOCKS, 1):
        for conv, width in enumerate(widths, 1):
            layers[f"block{block}_conv{conv}"] = torch.nn.Conv2d(channels, width, 3, padding=1)
            channels = width
        layers[f"block{block}_pool"] = torch.nn.MaxPool2d(2)
    if classes:
        layers["flatten"] = torch.nn.Flatten()
        layers["fc1"] = torch.nn.Linear(25088, 4096)
        layers["fc2"] = torch.nn.Linear(4096, 4096)
        layers["predictions"] = torch.nn.Linear(4096, classes)
    return torch.nn.ModuleDict(layers)


def outputs(network, batch, height, width):
    """Shapes by forward hooks, channels last; nothing is computed, as all is on "meta"."""
    shapes = {}

    def note(name):
        def hook(module, inputs, output):
            shape = list(output.shape)
            shapes[name] = [shape[0], *shape[2:], shape[1]] if len(shape) == 4 else shape

        return hook

    for name, layer in network.items():
        if name != "flatten":
            layer.register_forward_hook(note(name))
    values = torch.empty(batch, 3, height, width, device="meta")
    for layer in network.values():
        values = layer(values)
    return shapes


def tensor_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def layers_problem(network, plan, shapes, storage, compute):
    got = {layer["name"]: layer for layer in plan["layers"]}
    if list(got) != list(shapes):
        return f"layers {list(got)}"
    for name, shape in shapes.items():
        row = got[name]
        module = network[name]
        elements = torch.Size(shape).numel()
        weights = module.weight.numel() if hasattr(module, "weight") else 0
        biases = module.bias.numel() if hasattr(module, "bias") else 0
        wanted = {
            "output_shape": shape,
            "activation_bytes": elements * BYTES[compute],
            "weight_bytes": weights * BYTES[storage],
            "bias_bytes": biases * BYTES[storage],
        }
        for key, value in wanted.items():
            if row[key] != value:
                return f"{name} {key}: {row[key]}, torch {value}"
    return None


@check
def check_plan_shapes(context):
    random = context.random
    for _ in range(context.rounds(20, 5)):
        top = random.random() < 0.4
        classes = random.randrange(1, 5000) if top else 0
        height, width = (224, 224) if top else (random.randrange(32, 700) for _ in range(2))
        batch = random.randrange(1, 300)
        storage, compute = (random.choice(list(BYTES)) for _ in range(2))
        options = ["--batch", batch, "--input", f"{height}x{width}"]
        options += ["--dtype", storage, "--compute", compute, "--mode", "training"]
        options += ["--classes", classes] if top else ["--no-top"]
        outcome = context.run("plan_vgg16", *options, "--json")
        problem = outcome.accepted()
        if not problem:
            plan = outcome.json()
            network = build(classes).to("meta")
            shapes = outputs(network, batch, height, width)
            weights = tensor_bytes(p.to(TYPES[storage]) for p in network.parameters())
            kept = sum(torch.Size(s).numel() for s in shapes.values()) * BYTES[compute]
            wanted = {
                "parameters": sum(p.numel() for p in network.parameters()),
                "weights_bytes": weights,
                "activations_bytes": kept,
                "gradients_bytes": tensor_bytes(network.parameters()),
            }
            off = [f"{k}: {plan[k]}, torch {v}" for k, v in wanted.items() if plan[k] != v]
            problem = "; ".join(off) or layers_problem(network, plan, shapes, storage, compute)
        yield " ".join(map(str, options)), problem


@check
def check_plan_optimizer(context):
    """What the real optimizers allocate for a network without the top after one step."""
    makers = {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adam": lambda parameters: torch.optim.Adam(parameters),
    }
    for name, make in makers.items():
        network = build(0)
        optimizer = make(network.parameters())
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        # Adam counts its steps for each parameter, in a scalar.
        state = [
            value
            for entries in optimizer.state.values()
            for value in entries.values()
            if isinstance(value, torch.Tensor) and value.dim() > 0
        ]
        gradients = tensor_bytes(p.grad for p in network.parameters())
        options = ["--no-top", "--mode", "training", "--optimizer", name]
        plan = context.run("plan_vgg16", *options, "--json").json()
        got = (plan["optimizer_bytes"], plan["gradients_bytes"])
        wanted = (tensor_bytes(state), gradients)
        yield name, None if got == wanted else f"planned {got}, torch {wanted}"


@check
def check_plan_budget(context):
    """Whatever is advised is what a plan with it says, and the largest batch is the largest."""
    random = context.random
    for _ in range(context.rounds(30, 6)):
        options = ["--dtype", random.choice(list(BYTES)), "--optimizer", "adam"]
        options += ["--mode", random.choice(["inference", "frozen", "training"])]
        batch = random.randrange(1, 200)
        budget = int(10 ** random.uniform(7, 11))
        line = [*options, "--batch", batch]
        plan = context.run("plan_vgg16", *line, "--budget", budget, "--json").json()
        problems = []

        def total(changed):
            return context.run("plan_vgg16", *changed, "--json").json()["total_bytes"]

        most = plan["max_batch"]
        if most and total([*options, "--batch", most]) > budget:
            problems.append(f"batch {most} does not fit")
        if total([*options, "--batch", most + 1]) <= budget:
            problems.append(f"batch {most + 1} fits, too")
        if plan["fits"] != (plan["total_bytes"] <= budget) or plan["fits"] and plan["advice"]:
            problems.append("fits or not")
        for advice in plan["advice"]:
            changed = {options[i]: options[i + 1] for i in range(0, len(options), 2)}
            changed["--batch"] = batch
            flags = []
            for change in advice["change"].split(", "):
                match change.split():
                    case ["dtype", name]:
                        changed["--dtype"] = name
                    case ["batch", number]:
                        changed["--batch"] = number
                    case ["no", "top"]:
                        flags.append("--no-top")
                    case ["frozen", "base"]:
                        changed["--mode"] = "frozen"
                    case other:
                        problems.append(f"advice {other}")
            bytes_then = total([word for pair in changed.items() for word in pair] + flags)
            if (advice["total_bytes"], advice["fits"]) != (bytes_then, bytes_then <= budget):
                problems.append(f"{advice}: {bytes_then}")
        yield f"{' '.join(map(str, line))}, budget {budget}", "; ".join(problems) or None
