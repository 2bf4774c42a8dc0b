#include "stream.h"

#include <sched.h>
#include <unistd.h>

#include "fault.h"
#include "graph.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t progress = PTHREAD_COND_INITIALIZER;
static Array<Stream*> streams;  // that exist or still have work. A Stream itself is never freed: tickets name it.
static long delay = -1;
static bool forked;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool done(Ticket t) { return t.stream->completed >= t.number; }

static void maybe_delay() {
    long most = __atomic_load_n(&delay, __ATOMIC_RELAXED);
    static thread_local unsigned seed = 0;
    if (most <= 0) return;
    if (!seed) seed = static_cast<unsigned>(reinterpret_cast<uintptr_t>(&seed) >> 4) | 1;
    usleep(static_cast<useconds_t>(rand_r(&seed) % (most + 1)));
}

// Looks at something for a few microseconds before its caller sleeps: waking a thread takes longer than most work.
template <class Ready>
static void look(Ready ready) {
    for (int64_t end = now_ns() + 30000; !ready() && now_ns() < end;) sched_yield();
}

static void* work(void* argument) {
    Stream* s = static_cast<Stream*>(argument);
    void* handler_stack = fault_prepare_thread();
    device_select(s->device->index);  // the one that host functions find
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (!s->head && !s->destroyed) pthread_cond_wait(&s->work, &mutex);
        Operation* op = s->head;
        if (!op) break;
        for (Ticket& t : op->after)
            while (!done(t)) pthread_cond_wait(&progress, &mutex);
        s->head = op->next;
        pthread_mutex_unlock(&mutex);

        maybe_delay();
        if (op->always || !__atomic_load_n(&s->device->fault, __ATOMIC_ACQUIRE)) op->run(op);
        free(op->after.items);
        free(op);

        pthread_mutex_lock(&mutex);
        __atomic_store_n(&s->completed, s->completed + 1, __ATOMIC_RELEASE);
        pthread_cond_broadcast(&progress);
        if (s->head || s->destroyed) continue;
        pthread_mutex_unlock(&mutex);
        look([s] { return __atomic_load_n(&s->head, __ATOMIC_ACQUIRE) != nullptr; });
        pthread_mutex_lock(&mutex);
    }
    streams.remove_item(s);
    pthread_mutex_unlock(&mutex);
    fault_release_thread(handler_stack);
    return nullptr;
}

static void start() {
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
    if (delay < 0) delay = static_cast<long>(environment_number("HIPATTN_CPU_DELAY", 0));
}

bool stream_forked() { return forked; }

void stream_set_delay(unsigned microseconds) { __atomic_store_n(&delay, microseconds, __ATOMIC_RELAXED); }

static Stream* create(Device* device, unsigned flags, bool is_null) {
    pthread_once(&once, start);
    Stream* s = make<Stream>();
    s->device = device;
    s->flags = flags;
    s->is_null = is_null;
    pthread_cond_init(&s->work, nullptr);
    streams.push(s);
    return s;
}

Stream* stream_create(Device* device, unsigned flags) {
    Lock lock(mutex);
    return create(device, flags, false);
}

static Stream* null_stream(Device* device) {
    Lock lock(mutex);
    if (!device->null_stream) device->null_stream = create(device, 0, true);
    return device->null_stream;
}

static Stream* thread_stream(Device* device) {
    static thread_local Stream* own[16];
    Stream*& s = own[device->index];
    if (!s) s = stream_create(device, 0);
    return s;
}

Stream* stream_of(void* handle) {
    Device* device = device_current();
    switch (reinterpret_cast<uintptr_t>(handle)) {
        case 0:
        case 1: return device ? null_stream(device) : nullptr;
        case 2: return device ? thread_stream(device) : nullptr;
    }
    Lock lock(mutex);
    for (Stream* s : streams)
        if (s == handle && !s->destroyed && !s->is_null) return s;
    return nullptr;
}

void stream_destroy(Stream* s) {
    Lock lock(mutex);
    s->destroyed = true;
    if (s->working)
        pthread_cond_signal(&s->work);
    else
        streams.remove_item(s);
}

// The legacy rule: work of the null stream waits for all earlier work of the blocking streams, and the other way
// round.
static bool ordered(const Stream* a, const Stream* b) {
    return a != b && a->device == b->device && (a->is_null || b->is_null) &&
           !((a->flags | b->flags) & hipStreamNonBlocking);
}

Ticket stream_submit(Stream* s, Operation* op) {
    Lock lock(mutex);
    op->stream = s;
    if (s->capture) {
        graph_add(s->capture, op);
        return {};
    }
    for (Stream* other : streams)
        if (ordered(s, other) && other->completed < other->submitted) op->after.push({other, other->submitted});
    op->ticket = {s, ++s->submitted};
    Ticket ticket = op->ticket;
    if (s->head)
        s->tail->next = op;
    else
        __atomic_store_n(&s->head, op, __ATOMIC_RELEASE);
    s->tail = op;
    if (!s->working) {
        s->working = true;
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        if (pthread_create(&thread, &attributes, work, s)) abort();
        pthread_attr_destroy(&attributes);
    } else if (s->head == op) {
        pthread_cond_signal(&s->work);
    }
    return ticket;
}

bool stream_set_capture(Stream* s, Graph* graph) {
    Lock lock(mutex);
    if (graph && s->capture) return false;
    s->capture = graph;
    return true;
}

Graph* stream_capture(Stream* s) {
    Lock lock(mutex);
    return s->capture;
}

bool stream_idle(Stream* s) {
    Lock lock(mutex);
    for (Stream* other : streams)
        if (ordered(s, other) && s->is_null && other->completed < other->submitted) return false;
    return s->completed == s->submitted;
}

static void wait(Ticket t) {
    look([t] { return __atomic_load_n(&t.stream->completed, __ATOMIC_ACQUIRE) >= t.number; });
    Lock lock(mutex);
    while (!done(t)) pthread_cond_wait(&progress, &mutex);
}

// Waits for everything that the chosen streams have at this moment.
template <class Chosen>
static void wait_for(Chosen chosen) {
    Array<Ticket> tickets = {};
    {
        Lock lock(mutex);
        for (Stream* s : streams)
            if (s->completed < s->submitted && chosen(s)) tickets.push({s, s->submitted});
    }
    for (Ticket& t : tickets) wait(t);
    free(tickets.items);
}

void stream_wait(Stream* s) {
    wait_for([s](Stream* other) { return other == s || (s->is_null && ordered(s, other)); });
}

void device_wait(Device* device) {
    wait_for([device](Stream* s) { return s->device == device; });
}

bool ticket_done(Ticket t) {
    Lock lock(mutex);
    return !t.stream || done(t);
}

void ticket_wait(Ticket t) {
    if (t.stream) wait(t);
}
