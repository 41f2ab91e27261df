// A library with a host module's name and nothing of one.
extern "C" __attribute__((visibility("default"))) int arcflow_not_a_host() { return 0; }
