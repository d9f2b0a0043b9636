"""What libraries read from the environment once, when they load.

Whoever renders in its own process adds it before torch is imported, below what a person has set:
`os.environ.update(ENVIRONMENT | os.environ)`.
"""

ENVIRONMENT = {
    # Checkpoints are folders; nothing is looked up outside.
    "HF_HUB_OFFLINE": "1",
    # OpenMP's threads spin at the end of each of a UNet's hundreds of loops. On a machine that does other work as
    # well, the thread they wait for may not be running: steps then took over a hundred times as long (measured).
    "OMP_WAIT_POLICY": "PASSIVE",
    # Asleep at once, they take longer to wake than most loops last, above all in a virtual machine. A tenth of a
    # millisecond of spinning lets them meet: small steps take half as long, and two thirds longer beside a process
    # that computes all the time (measured).
    "GOMP_SPINCOUNT": "2000",
    # MKL adds up the products of a low matrix in another order than those of a high one, and how high a matrix is
    # depends on the rows of the call. oneMKL's strict reproducibility has one order for all (decision 0003).
    "MKL_CBWR": "AUTO,STRICT",
}
