// Events: a ticket of the stream in which it was last recorded, and the time when that was reached.
#pragma once

#include "stream.h"

struct Event;

Event* event_create(Device*, unsigned flags);
Event* event_of(void* handle);  // null when it is no event
void event_destroy(Event*);
hipError_t event_record(Event*, Stream*);
hipError_t event_query(Event*);
hipError_t event_wait(Event*);
void event_order(Event*, Stream*);  // later work of the stream waits for the event
hipError_t event_elapsed(Event* start, Event* stop, float* milliseconds);
Device* event_device(Event*);
