# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A head learns as PyTorch's does: the same losses, step for step, from the same weights."""

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from support import check

STEPS = 50
BATCH = 32

# Features of an image, layers, and the learning rates of SGD, of SGD with momentum, and of Adam.
HEADS = [
    ((7, 7, 512), ["flatten", "relu:256", "dense:10"], (1e-3, 1e-4, 1e-5)),
    ((7, 7, 512), ["global_average_pool", "relu:64", "dense:5"], (5e-2, 1e-2, 1e-3)),
    ((2, 3, 64), ["flatten", "relu:96", "relu:32", "dense:2"], (3e-2, 3e-3, 1e-3)),
]


class GlobalAveragePool(torch.nn.Module):
    def forward(self, maps):
        return maps.mean(dim=(1, 2))


def build(shape, layers):
    """The layers as torch has them, on maps whose channels come last."""
    modules = []
    inputs = int(np.prod(shape))
    for layer in layers:
        name, _, units = layer.partition(":")
        if name == "flatten":
            modules.append(torch.nn.Flatten())
        elif name == "global_average_pool":
            modules.append(GlobalAveragePool())
            inputs = shape[-1]
        else:
            modules.append(torch.nn.Linear(inputs, int(units)))
            inputs = int(units)
            if name == "relu":
                modules.append(torch.nn.ReLU())
    return torch.nn.Sequential(*modules)


def weights_of(network):
    """By our names; a kernel is [inputs, outputs]."""
    weights = {}
    linear = [module for module in network if isinstance(module, torch.nn.Linear)]
    for number, module in enumerate(linear, 1):
        kernel = module.weight.detach().numpy().T
        weights[f"dense_{number}.kernel"] = np.ascontiguousarray(kernel)
        weights[f"dense_{number}.bias"] = module.bias.detach().numpy().copy()
    return weights


def optimizer_of(name, parameters, rate, decay):
    if name == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    momentum = 0.9 if name == "momentum" else 0
    return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay)


def train(network, optimizer, features, labels):
    """The losses of all steps."""
    losses = []
    batches = len(features) // BATCH
    for step in range(STEPS):
        part = slice(step % batches * BATCH, (step % batches + 1) * BATCH)
        loss = torch.nn.functional.cross_entropy(network(features[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def run(context, data, output, optimizer, rate, decay, policy, layers):
    """Ours: the losses, and a problem or None."""
    line = ["../tests/train_steps", data, output, optimizer, rate, decay, policy, STEPS, BATCH]
    outcome = context.run(*line, *layers)
    if outcome.code or outcome.stderr:
        return None, outcome.brief()
    lines = [line.split() for line in outcome.stdout.decode().splitlines()]
    skipped = sum(word == "skipped" for _, word in lines)
    if skipped > (5 if policy == "mixed_float16" else 0):
        return None, f"{skipped} steps were skipped"
    return np.array([float(loss) for loss, _ in lines]), None


@check
def check_training(context):
    for shape, layers, rates in HEADS[: context.rounds(3, 2)]:
        torch.manual_seed(context.random.randrange(2**32))
        # As a base's ReLU leaves them: channels differ from image to image, and classes show in them.
        images = 4 * BATCH + 5
        channels = torch.randn(images, 1, 1, shape[-1])
        features = torch.relu(channels + torch.randn(images, *shape))
        classes = int(layers[-1].partition(":")[2])
        scores = features.mean(dim=(1, 2)) @ torch.randn(shape[-1], classes)
        labels = torch.nn.functional.one_hot((scores - scores.mean(0)).argmax(1), classes).float()
        for optimizer, rate in zip(("sgd", "momentum", "adam"), rates):
            decay = context.random.choice([0, 1e-2])
            network = build(shape, layers)
            data = context.folder / "data.safetensors"
            tensors = {"features": features.numpy(), "labels": labels.numpy()}
            save_file(tensors | weights_of(network), data)
            optimizer_of_torch = optimizer_of(optimizer, network.parameters(), rate, decay)
            wanted = train(network, optimizer_of_torch, features, labels)
            label = f"{'x'.join(map(str, shape))} {', '.join(layers)}; {optimizer}, decay {decay}"

            output = context.folder / "trained.safetensors"
            arguments = (data, output, optimizer, rate, decay)
            got, problem = run(context, *arguments, "f32", layers)
            if not problem:
                relative = (np.abs(got - wanted) / wanted).max()
                if relative > 1e-4:
                    problem = f"losses are off by {relative:.1e} of torch's"
                elif wanted[-4:].mean() > 0.97 * wanted[:4].mean():
                    problem = f"nothing was learnt: {wanted[:4]} to {wanted[-4:]}"
                else:
                    label += f": losses {wanted[0]:.3f} to {wanted[-1]:.3f}, off by {relative:.0e}"
                    trained = load_file(output)
                    for name, weight in weights_of(network).items():
                        off = np.abs(trained[name] - weight).max() / np.abs(weight).max()
                        if off > 1e-3:
                            problem = f"{name} is off by {off:.1e} of its largest value"
            yield label, problem

            # What 16 bits lose, and steps that float16 skips, must not show in what is learnt.
            learnt = wanted[0] - wanted[-8:].mean()
            for policy in ("mixed_float16", "mixed_bfloat16"):
                got, problem = run(context, *arguments, policy, layers)
                if not problem:
                    off = abs(got[-8:].mean() - wanted[-8:].mean())
                    if off > 0.15 * learnt + 0.01 * wanted[0]:
                        problem = f"losses end {off:.3f} off where they fell by {learnt:.3f}"
                    elif (got == wanted).any():
                        problem = "losses are those of FP32"
                    label = f"{optimizer}, {policy}: the losses' end is off by {off:.1e}"
                yield label, problem
