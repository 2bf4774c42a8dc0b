// Streams: a queue and a worker thread each. What orders operations of different streams is always a ticket: "that
// stream has completed its operation number n".
#pragma once

#include "device.h"

struct Ticket {
    Stream* stream;
    uint64_t number;
};

struct Graph;

// Work for a stream. The specific kinds derive from it; made with `make`, freed after it ran. What a stream captures
// runs again with each launch of its graph.
struct Operation {
    void (*run)(Operation*);
    bool always;  // runs also when the device is broken: what gives memory back, what others wait for
    Stream* stream;
    Ticket ticket;
    Operation* next;
    Array<Ticket> after;
};

struct Stream {
    Device* device;
    unsigned flags;
    bool is_null, destroyed, working;
    pthread_cond_t work;
    Operation *head, *tail;
    uint64_t submitted, completed;
    Graph* capture;  // takes what is submitted, if there is one
};

// A handle as HIP's callers pass it: null and hipStreamLegacy are the current device's null stream,
// hipStreamPerThread the calling thread's own. Null when it is no stream.
Stream* stream_of(void* handle);

Stream* stream_create(Device*, unsigned flags);
void stream_destroy(Stream*);  // returns at once; what is queued still runs

Ticket stream_submit(Stream*, Operation*);
bool stream_set_capture(Stream*, Graph*);  // false if there is one already; null ends it
Graph* stream_capture(Stream*);
bool stream_idle(Stream*);  // of the null stream: and every stream that it waits for
void stream_wait(Stream*);
void device_wait(Device*);

bool ticket_done(Ticket);
void ticket_wait(Ticket);

void stream_set_delay(unsigned microseconds);
bool stream_forked();  // in a child process: the workers are gone
