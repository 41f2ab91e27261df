// A libnvidia-ml.so.1 of one card at work, so that what foundation/nvml.py asks goes through the real C interface.
#include <cstring>

extern "C" {
int nvmlInit_v2() { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  static int card;
  return *device = &card, index == 0 ? 0 : 2;
}
int nvmlDeviceGetName(void* device, char* name, unsigned length) {
  return std::strncpy(name, "NVIDIA H100 played", length), device == nullptr;
}
int nvmlSystemGetDriverVersion(char* version, unsigned length) { return std::strncpy(version, "580.95", length), 0; }
int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* memory) {
  return memory[0] = 80ULL << 30, memory[1] = 79ULL << 30, memory[2] = 1ULL << 30, device == nullptr;
}
int nvmlDeviceGetPowerManagementLimit(void* device, unsigned* milliwatts) {
  return *milliwatts = 700000, device == nullptr;
}
int nvmlDeviceGetClockInfo(void* device, int kind, unsigned* megahertz) {
  *megahertz = kind == 1 ? 1755 : 2619;  // NVML_CLOCK_SM, NVML_CLOCK_MEM
  return device == nullptr || kind < 1 || kind > 2;
}
int nvmlDeviceGetPowerUsage(void* device, unsigned* milliwatts) { return *milliwatts = 654321, device == nullptr; }
int nvmlDeviceGetTemperature(void* device, int sensor, unsigned* celsius) {
  return *celsius = 61, device == nullptr || sensor != 0;
}
int nvmlDeviceGetUtilizationRates(void* device, unsigned* rates) {
  return rates[0] = 97, rates[1] = 40, device == nullptr;
}
}
