"""The C++ core: its sources lie here, what is built of it in the package ``arcflow_native``.

``python -m runtime.native --cmake-dir`` tells CMake where the installed package is.
"""
