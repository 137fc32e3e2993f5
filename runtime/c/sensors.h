/* sensors.h: what Linux tells under /sys about a device that is being measured: core clock, temperature, energy, throttling, caches.
 *
 * Nothing here is guaranteed: boards lack files, and some files are for root alone. Whatever cannot be read is SENSOR_UNKNOWN. */
#ifndef BEVEL_SENSORS_H
#define BEVEL_SENSORS_H

#include <stdint.h>

#define SENSOR_UNKNOWN INT64_MIN

enum { SENSOR_PACKAGES = 8 };

/* One look at the energy counter. */
typedef struct {
    int64_t value[SENSOR_PACKAGES];
    uint64_t at_ns;
} sensor_energy;

/* Read from the directory `root` (/sys), which must stay valid; finds the energy counter. */
void sensors_open(const char *root);

/* Where energy comes from: a path under `root`, or NULL. The first of: RAPL, summed over the processor packages; the first energy
 * counter of hwmon; the first power sensor of hwmon (INA219 and the like); the first pair of current and voltage there (INA3221, whose
 * first channel is the supply of a Jetson). The mean power at both ends stands for the time between. */
const char *sensor_energy_source(void);

sensor_energy sensor_energy_now(void);

/* Nanojoules between two looks. Counters that wrapped around, once, are followed. */
int64_t sensor_energy_between(const sensor_energy *before, const sensor_energy *after);

/* Clock of a core now. */
int64_t sensor_khz(int cpu);

/* The hottest thermal zone, in thousandths of a degree Celsius. */
int64_t sensor_hottest(void);

/* How often any core has been throttled for heat since the system started. */
int64_t sensor_throttle_count(void);

/* The Raspberry Pi firmware's answer whether voltage, clock or heat hold the processor back now: 0 or 1. */
int64_t sensor_held_back(void);

/* The largest cache that `cpu` reaches, in KiB. */
int64_t sensor_cache_kib(int cpu);

#endif
