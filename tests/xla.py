"""How tests compile: as fast as can be, which is most of their work."""


def flags(num_devices: int = 1) -> str:
  """XLA_FLAGS of a process with so many CPU devices.

  Without LLVM's optimisations compiling takes half of the time.
  """
  return (
    f'--xla_force_host_platform_device_count={num_devices} '
    '--xla_backend_optimization_level=0'
  )
