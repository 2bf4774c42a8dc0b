#include "event.h"

// Shared by the event and the operation that reaches it: either may be gone first.
struct Record {
    Ticket ticket;
    int64_t time;
    int owners;
};

struct Event {
    Device* device;
    unsigned flags;
    Record* record;
};

struct RecordOperation : Operation {
    Record* record;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Array<Event*> events;

static void drop(Record* r) {
    if (r && __atomic_sub_fetch(&r->owners, 1, __ATOMIC_ACQ_REL) == 0) free(r);
}

// The caller's view of the last record, to be dropped.
static Record* last(Event* event) {
    Lock lock(mutex);
    if (event->record) __atomic_add_fetch(&event->record->owners, 1, __ATOMIC_RELAXED);
    return event->record;
}

Event* event_create(Device* device, unsigned flags) {
    Event* event = make<Event>();
    event->device = device;
    event->flags = flags;
    Lock lock(mutex);
    events.push(event);
    return event;
}

Event* event_of(void* handle) {
    Lock lock(mutex);
    for (Event* event : events)
        if (event == handle) return event;
    return nullptr;
}

void event_destroy(Event* event) {
    Lock lock(mutex);
    events.remove_item(event);
    drop(event->record);
    free(event);
}

Device* event_device(Event* event) { return event->device; }

hipError_t event_record(Event* event, Stream* stream) {
    if (event->device != stream->device) return hipErrorInvalidHandle;
    Record* record = make<Record>();
    record->owners = 2;
    RecordOperation* op = make<RecordOperation>();
    op->record = record;
    op->always = true;
    op->run = [](Operation* self) {
        Record* r = static_cast<RecordOperation*>(self)->record;
        r->time = now_ns();
        drop(r);
    };
    Lock lock(mutex);
    record->ticket = stream_submit(stream, op);
    drop(event->record);
    event->record = record;
    return hipSuccess;
}

hipError_t event_query(Event* event) {
    Record* r = last(event);
    bool done = !r || ticket_done(r->ticket);
    drop(r);
    return done ? hipSuccess : hipErrorNotReady;
}

hipError_t event_wait(Event* event) {
    Record* r = last(event);
    if (r) ticket_wait(r->ticket);
    drop(r);
    return hipSuccess;
}

void event_order(Event* event, Stream* stream) {
    Record* r = last(event);
    if (!r) return;
    Operation* op = make<Operation>();
    op->always = true;
    op->run = [](Operation*) {};
    op->after.push(r->ticket);
    stream_submit(stream, op);
    drop(r);
}

hipError_t event_elapsed(Event* start, Event* stop, float* milliseconds) {
    Record *a = last(start), *b = last(stop);
    hipError_t status = hipSuccess;
    if (!a || !b || ((start->flags | stop->flags) & hipEventDisableTiming))
        status = hipErrorInvalidHandle;
    else if (!ticket_done(a->ticket) || !ticket_done(b->ticket))
        status = hipErrorNotReady;
    else
        *milliseconds = static_cast<float>(static_cast<double>(b->time - a->time) * 1e-6);
    drop(a);
    drop(b);
    return status;
}
