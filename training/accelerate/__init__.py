"""Configurations for `accelerate launch --config_file`, and how they go together with recipes.

| file | what is shared out | for |
|---|---|---|
| `gpus.yaml` | nothing, each GPU has all | stage 2, restoration, `pretrain`, adapters, small language models |
| `zero2.yaml` | gradients and moments | `pretrain` and `stage1` to 3 B parameters; adapters |
| `zero3.yaml` | weights too | `stage1`, as the published models were trained |
| `zero3_offload.yaml` | the same, in the memory of the CPUs | `stage1` of 7 B parameters and more on few GPUs |
| `fsdp.yaml` | weights, gradients and moments, by PyTorch | `stage1` without DeepSpeed |
| `cpu.yaml` | nothing | two processes on a machine without a GPU |

The recipe decides the global batch; with another `--num_processes` more or fewer micro-batches are added up. It decides
the precision too: `mixed_precision` here is for accelerate's own messages. Averages of parameters (`ema_decay`) need
whole weights, so stage 2 and restoration take `gpus.yaml`. Quantized bases (`adapter.bits`) go with `gpus.yaml` and
`zero2.yaml`: ZeRO-3 and FSDP cannot share out weights in 4 or 8 bits as they are loaded here.
Without a GPU, accelerate's own `--cpu --num_processes 2` starts several processes through MPI alone
(`--mpirun_hostfile FILE`, with a line `localhost slots=2`); `cpu.yaml` needs none.
DeepSpeed is not among this project's requirements: `pip install deepspeed` where it is used. Its checkpoints and FSDP's
hold pickles (`training.runs.checkpoints`); all exports are safetensors.
"""
