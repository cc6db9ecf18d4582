"""Whether this machine runs V0.5 on its GPU, in stages: ``python -m verl_v05.check_gpu``.

Without a GPU the stages that need none run, training stages are composed and checked, and of the others it tells what
they would do.
"""
