"""Started by torchrun: what is read in shares is what a plain load reads, bit for bit."""

import json
import sys

import torch
from torch.distributed.tensor import DTensor

import peftcls
from peftcls.data.reading import as_dataset

bases = json.loads(sys.argv[1])
torch.set_num_threads(1)
labelled = as_dataset([{"text": "one", "label": "a"}, {"text": "two", "label": "b"}])
TASKS = {
    "labels": peftcls.Classification(max_length=16).learn(labelled),
    "text": peftcls.Instruction(
        template="{input}", input="text", output="label", max_length=32, max_new_tokens=4
    ),
}


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


for name, base in bases.items():
    for kind, task in TASKS.items():
        if name == "bert" and kind == "text":
            continue
        for dtype in (torch.float32, torch.bfloat16):
            plain, _ = peftcls.load_base(base, task, dtype=dtype, seed=3, shard=False)
            shared, _ = peftcls.load_base(base, task, dtype=dtype, seed=3, shard=True)
            expected, found = plain.state_dict(), shared.state_dict()
            assert expected.keys() == found.keys()
            for key, tensor in expected.items():
                assert torch.equal(whole(found[key]), tensor), (name, kind, key)
            expected_buffers = dict(plain.named_buffers())
            for key, buffer in shared.named_buffers():
                assert torch.equal(buffer, expected_buffers[key]), (name, kind, key)
            in_shares = sum(t.numel() for t in found.values() if isinstance(t, DTensor))
            assert in_shares > 0.8 * sum(t.numel() for t in found.values()), (name, kind)
