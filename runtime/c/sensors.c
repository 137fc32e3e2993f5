/* sensors.c: small numbers from small files. */
#define _POSIX_C_SOURCE 200809L
#include "sensors.h"
#include "measure.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ZONES = 64, MAX_HWMON = 32, MAX_CHANNELS = 10, MAX_CACHES = 10, TEXT = 64, PATH = 4096 };

static const char *base = "/sys";
static enum { NO_ENERGY, RAPL, COUNTER, POWER, CURRENT } energy_kind;
static char energy_path[TEXT + 64];
static int packages, zones, supply; /* the hwmon device that tells current and voltage */
static int64_t package_range[SENSOR_PACKAGES];

/* Put a file's first bytes into `text`; 0 when it cannot be read. */
__attribute__((format(printf, 2, 0))) static int read_under(char text[TEXT], const char *format, va_list args)
{
    char path[PATH];
    int n = snprintf(path, sizeof path, "%s/", base);
    return n > 0 && n < PATH && vsnprintf(path + n, sizeof path - (size_t)n, format, args) < PATH - n && read_text(path, text, TEXT);
}

/* The number a file begins with. *unit is the character after it. */
static int64_t parse(const char *text, int radix, char *unit)
{
    char *end;
    int64_t value = strtoll(text, &end, radix);
    *unit = *end;
    return end == text ? SENSOR_UNKNOWN : value;
}

__attribute__((format(printf, 1, 2))) static int64_t number(const char *format, ...)
{
    char text[TEXT], unit;
    va_list args;
    va_start(args, format);
    int found = read_under(text, format, args);
    va_end(args);
    return found ? parse(text, 10, &unit) : SENSOR_UNKNOWN;
}

__attribute__((format(printf, 2, 3))) static int read_file(char text[TEXT], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int found = read_under(text, format, args);
    va_end(args);
    return found;
}

static int64_t zone(int index)
{
    return number("class/thermal/thermal_zone%d/temp", index);
}

static int find_rapl(void)
{
    for (packages = 0; packages < SENSOR_PACKAGES; packages++) {
        int64_t range = number("class/powercap/intel-rapl:%d/max_energy_range_uj", packages);
        if (range < 0 || number("class/powercap/intel-rapl:%d/energy_uj", packages) < 0)
            break;
        package_range[packages] = range;
    }
    strcpy(energy_path, "class/powercap/intel-rapl");
    return packages > 0;
}

static int find_hwmon(const char *quantity)
{
    for (int device = 0; device < MAX_HWMON; device++)
        for (int channel = 1; channel < MAX_CHANNELS; channel++) {
            snprintf(energy_path, sizeof energy_path, "class/hwmon/hwmon%d/%s%d_input", device, quantity, channel);
            if (number("%s", energy_path) >= 0)
                return 1;
        }
    return 0;
}

static int64_t current(void)
{
    return number("class/hwmon/hwmon%d/curr1_input", supply);
}

static int64_t voltage(void)
{
    return number("class/hwmon/hwmon%d/in1_input", supply);
}

static int find_supply(void)
{
    for (supply = 0; supply < MAX_HWMON; supply++)
        if (current() >= 0 && voltage() >= 0) {
            snprintf(energy_path, sizeof energy_path, "class/hwmon/hwmon%d/curr1_input", supply);
            return 1;
        }
    return 0;
}

static int64_t counter_or_power(void)
{
    if (energy_kind != CURRENT)
        return energy_kind == NO_ENERGY ? SENSOR_UNKNOWN : number("%s", energy_path);
    int64_t milliamperes = current(), millivolts = voltage();
    return milliamperes < 0 || millivolts < 0 ? SENSOR_UNKNOWN : milliamperes * millivolts;
}

void sensors_open(const char *root)
{
    base = root;
    for (int i = 0; i < MAX_ZONES; i++)
        if (zone(i) != SENSOR_UNKNOWN)
            zones = i + 1;
    energy_kind = find_rapl()             ? RAPL
                  : find_hwmon("energy") ? COUNTER
                  : find_hwmon("power")  ? POWER
                  : find_supply()        ? CURRENT
                                         : NO_ENERGY;
}

const char *sensor_energy_source(void)
{
    return energy_kind == NO_ENERGY ? NULL : energy_path;
}

sensor_energy sensor_energy_now(void)
{
    sensor_energy e = {{0}, now_ns()};
    if (energy_kind == RAPL) {
        for (int i = 0; i < packages; i++)
            e.value[i] = number("class/powercap/intel-rapl:%d/energy_uj", i);
    } else {
        e.value[0] = counter_or_power();
    }
    return e;
}

int64_t sensor_energy_between(const sensor_energy *before, const sensor_energy *after)
{
    int64_t microjoules = 0;
    int count = energy_kind == RAPL ? packages : 1;
    for (int i = 0; i < count; i++) {
        int64_t a = before->value[i], b = after->value[i];
        if (a < 0 || b < 0)
            return SENSOR_UNKNOWN;
        if (energy_kind == POWER || energy_kind == CURRENT) {
            /* Microwatts over nanoseconds, without overflow up to a kilowatt for an hour. */
            int64_t us = (int64_t)((after->at_ns - before->at_ns) / 1000);
            return (a + b) / 2 / 1000 * us + (a + b) / 2 % 1000 * us / 1000;
        }
        if (b < a && energy_kind != RAPL)
            return SENSOR_UNKNOWN;
        microjoules += b < a ? b - a + package_range[i] : b - a;
    }
    return microjoules * 1000;
}

int64_t sensor_khz(int cpu)
{
    /* What the driver set; for what it measures, reading the file may take milliseconds or need root. */
    return number("devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq", cpu);
}

int64_t sensor_hottest(void)
{
    int64_t most = SENSOR_UNKNOWN;
    for (int i = 0; i < zones; i++) {
        int64_t value = zone(i);
        if (value > most)
            most = value;
    }
    return most;
}

int64_t sensor_throttle_count(void)
{
    int64_t sum = SENSOR_UNKNOWN;
    long cpus = sysconf(_SC_NPROCESSORS_CONF);
    for (int i = 0; i < cpus; i++) {
        int64_t count = number("devices/system/cpu/cpu%d/thermal_throttle/core_throttle_count", i);
        if (count >= 0)
            sum = sum < 0 ? count : sum + count;
    }
    return sum;
}

int64_t sensor_held_back(void)
{
    char text[TEXT], unit;
    if (!read_file(text, "devices/platform/soc/soc:firmware/get_throttled"))
        return SENSOR_UNKNOWN;
    /* Bits 0..3: now. The bits above tell the same of all time since the start. */
    int64_t bits = parse(text, 16, &unit);
    return bits < 0 ? SENSOR_UNKNOWN : (bits & 0xf) != 0;
}

int64_t sensor_cache_kib(int cpu)
{
    int64_t most = SENSOR_UNKNOWN;
    for (int i = 0; i < MAX_CACHES; i++) {
        char text[TEXT], unit;
        if (!read_file(text, "devices/system/cpu/cpu%d/cache/index%d/size", cpu, i))
            continue;
        int64_t size = parse(text, 10, &unit);
        if (unit == 'M')
            size *= 1024;
        if (size > most)
            most = size;
    }
    return most;
}
