#include "injection.h"

struct Failure {
    char name[64];
    long countdown;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static Counter* counters;
static Array<Failure> failures;
static int armed;

static void read_environment() {
    if (const char* spec = getenv("HIPATTN_CPU_FAIL")) injection_set(spec);
}

void injection_set(const char* spec) {
    Lock lock(mutex);
    failures.count = 0;
    while (spec && *spec) {
        size_t length = strcspn(spec, ",");
        size_t name = strcspn(spec, ",:");
        Failure f = {};
        if (name && name < sizeof f.name) {
            memcpy(f.name, spec, name);
            f.countdown = spec[name] == ':' ? strtol(spec + name + 1, nullptr, 10) : 1;
            failures.push(f);
        }
        spec += length + (spec[length] == ',');
    }
    __atomic_store_n(&armed, failures.count > 0, __ATOMIC_RELEASE);
}

bool injection_enter(Counter* counter) {
    pthread_once(&once, read_environment);
    if (__atomic_fetch_add(&counter->calls, 1, __ATOMIC_RELAXED) == 0) {
        Lock lock(mutex);
        counter->next = counters;
        counters = counter;
    }
    if (!__atomic_load_n(&armed, __ATOMIC_ACQUIRE)) return false;
    Lock lock(mutex);
    bool fail = false;
    for (size_t i = failures.count; i-- > 0;) {
        if (strcmp(failures.items[i].name, counter->name) || --failures.items[i].countdown > 0) continue;
        failures.remove(i);
        fail = true;
    }
    return fail;
}

static Counter* find(const char* name) {
    Lock lock(mutex);
    for (Counter* c = counters; c; c = c->next)
        if (!strcmp(c->name, name)) return c;
    return nullptr;
}

bool injection_enter(const char* name) {
    Counter* counter = find(name);
    if (!counter) {
        counter = make<Counter>();
        counter->name = strdup(name);
    }
    return injection_enter(counter);
}

long injection_calls(const char* name) {
    Counter* counter = find(name);
    return counter ? __atomic_load_n(&counter->calls, __ATOMIC_RELAXED) : 0;
}
