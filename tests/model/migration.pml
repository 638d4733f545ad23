/*
 * How an instance moves from one node to another: DESIGN of nativert/runtime/migration.
 *
 * Two equal nodes. Every migration has an epoch, greater than all before it; a node's store knows
 * the last epoch that it took part in, in which phase it is, and how it went out. Each guarded
 * step below is one commit of the store, or one start or stop of the application: between any
 * two of them a node may be killed (its processes go), rebooted (its application goes too),
 * frozen or cut off (its steps are not taken for as long as one likes).
 *
 * The network keeps every message that was ever sent and delivers it whenever it likes: late,
 * out of order, twice, long after its migration. It loses LOSSES of them, and what is still
 * wanted is then sent again.
 *
 * Checked, by `pan` and by `pan -l` (no run is endless, so every run comes to the end that
 * `judge` looks at): at no moment two copies run, and in the end exactly one does.
 */

#ifndef EPOCHS
#define EPOCHS 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef LOSSES
#define LOSSES 1
#endif

/* The names of nativert/runtime/migration/messages.py; a test compares them. */
mtype:message = {
    PREPARE, READY, REFUSED, CHUNK, STORED, FINISH, RECEIVED,
    COMMIT, DONE, RETURNED, ABORT, INQUIRE
}

/* Those of nativert/store/moves.py; NONE and OWNER are a node without a move. */
mtype:phase = { NONE, OWNER, PREPARING, TAKE_OFF, COMMITTED, ABORTING, LANDING, HELD, STARTING }

/* How a node's last epoch went out for it. */
mtype:outcome = { OPEN, ABANDONED, GIVEN, GIVEN_BACK, LANDED }

#define SLOTS (EPOCHS + 1)
#define at(name, e) sent[(name) * SLOTS + (e)]
#define other(i) (1 - (i))

bool sent[13 * SLOTS];
byte source_of[SLOTS];

mtype:phase phase[2];
mtype:outcome outcome[2];
byte epoch[2];
bool running[2];
bool mover[2];          /* the process that carries a migration out at its source */
bool data[2];           /* the destination has all of /data, though not surely on its disk */
byte crashes = CRASHES;
byte losses = LOSSES;
bool content = false;   /* nobody asks for another migration */

#define e epoch[i]
#define moves (phase[i] == PREPARING || phase[i] == TAKE_OFF)
#define waits (phase[i] == LANDING || phase[i] == HELD)
#define over(how) outcome[i] = how; data[i] = false
#define comes(k) (source_of[k] == other(i))
/* What the source answers to INQUIRE; nothing while it goes on. */
#define asked(k) (source_of[k] == i && at(INQUIRE, k))
#define gave(k) (asked(k) && !at(COMMIT, k) && k == e && \
    (phase[i] == COMMITTED || outcome[i] == GIVEN))
#define kept(k) (asked(k) && !at(ABORT, k) && (k < e || (k == e && phase[i] == OWNER)))

inline start()
{
    assert(!running[0] && !running[1]);
    running[i] = true
}

proctype node(byte i)
{
    byte k;
end:
    do
    /* ---- the source ------------------------------------------------------------------- */
    :: atomic { phase[i] == OWNER && running[i] && e < EPOCHS && !content ->
           e++; assert(source_of[e] == 2); source_of[e] = i;
           phase[i] = PREPARING; outcome[i] = OPEN; mover[i] = true }
    :: atomic { mover[i] && phase[i] == PREPARING && !at(PREPARE, e) -> at(PREPARE, e) = true }
    :: atomic { mover[i] && phase[i] == PREPARING && at(READY, e) -> phase[i] = TAKE_OFF }
    :: atomic { mover[i] && phase[i] == TAKE_OFF && running[i] -> running[i] = false }
    :: atomic { mover[i] && phase[i] == TAKE_OFF && !running[i] && !at(CHUNK, e) ->
           at(CHUNK, e) = true }
    :: atomic { mover[i] && phase[i] == TAKE_OFF && at(STORED, e) && !at(FINISH, e) ->
           at(FINISH, e) = true }
    :: atomic { mover[i] && phase[i] == TAKE_OFF && !running[i] && at(RECEIVED, e) ->
           phase[i] = COMMITTED }
    /* Refused, its time is up, or whoever carried it out is dead. */
    :: atomic { moves -> phase[i] = ABORTING; mover[i] = false }
    :: atomic { phase[i] == ABORTING && !running[i] -> start() }
    :: atomic { phase[i] == ABORTING && running[i] -> phase[i] = OWNER; over(ABANDONED);
           at(ABORT, e) = true }
    /* Whoever looks at the instance sends it, also after the death of the mover. */
    :: atomic { phase[i] == COMMITTED && !at(COMMIT, e) -> at(COMMIT, e) = true }
    :: atomic { phase[i] == COMMITTED && at(DONE, e) -> phase[i] = NONE; over(GIVEN);
           mover[i] = false }
    :: atomic { phase[i] == COMMITTED && at(RETURNED, e) -> phase[i] = ABORTING;
           mover[i] = false }
    :: atomic { gave(1) -> at(COMMIT, 1) = true }
    :: atomic { kept(1) -> at(ABORT, 1) = true }
    :: atomic { gave(2) -> at(COMMIT, 2) = true }
    :: atomic { kept(2) -> at(ABORT, 2) = true }
#if EPOCHS > 2
    :: atomic { gave(3) -> at(COMMIT, 3) = true }
    :: atomic { kept(3) -> at(ABORT, 3) = true }
#endif
    /* What a node was asked to run, it runs again after a reboot. */
    :: atomic { phase[i] == OWNER && !running[i] -> start() }

    /* ---- the destination -------------------------------------------------------------- */
    :: atomic { comes(1) && at(PREPARE, 1) && e < 1 -> k = 1; goto prepare }
    :: atomic { comes(2) && at(PREPARE, 2) && e < 2 -> k = 2; goto prepare }
#if EPOCHS > 2
    :: atomic { comes(3) && at(PREPARE, 3) && e < 3 -> k = 3; goto prepare }
#endif
    :: atomic { phase[i] == LANDING && at(PREPARE, e) && !at(READY, e) -> at(READY, e) = true }
    :: atomic { phase[i] == LANDING && at(CHUNK, e) && (!data[i] || !at(STORED, e)) ->
           data[i] = true; at(STORED, e) = true }
    :: atomic { phase[i] == LANDING && at(FINISH, e) && data[i] -> phase[i] = HELD }
    :: atomic { phase[i] == HELD && at(FINISH, e) && !at(RECEIVED, e) -> at(RECEIVED, e) = true }
    :: atomic { phase[i] == HELD && at(COMMIT, e) -> phase[i] = STARTING }
    :: atomic { phase[i] == STARTING && !running[i] -> start() }
    :: atomic { phase[i] == STARTING && running[i] -> phase[i] = OWNER; over(LANDED) }
    :: atomic { phase[i] == STARTING && !running[i] -> phase[i] = NONE; over(GIVEN_BACK) }
    :: atomic { outcome[i] == LANDED && at(COMMIT, e) && !at(DONE, e) -> at(DONE, e) = true }
    :: atomic { outcome[i] == GIVEN_BACK && at(COMMIT, e) && !at(RETURNED, e) ->
           at(RETURNED, e) = true }
    /* It has landed, and has been moved on before that was heard. */
    :: atomic { e > 1 && comes(1) && at(COMMIT, 1) && !at(DONE, 1) -> at(DONE, 1) = true }
#if EPOCHS > 2
    :: atomic { e > 2 && comes(2) && at(COMMIT, 2) && !at(DONE, 2) -> at(DONE, 2) = true }
#endif
    /* Too long without a word; after RECEIVED it is the source's to decide. */
    :: atomic { phase[i] == LANDING -> phase[i] = NONE; over(ABANDONED) }
    :: atomic { waits && !at(INQUIRE, e) -> at(INQUIRE, e) = true }
    :: atomic { waits && at(ABORT, e) -> phase[i] = NONE; over(ABANDONED) }
    :: atomic { outcome[i] == ABANDONED && phase[i] == NONE && comes(e) && !at(REFUSED, e) &&
           (at(PREPARE, e) || at(CHUNK, e) || at(FINISH, e)) -> at(REFUSED, e) = true }
    :: atomic { comes(1) && at(ABORT, 1) && e < 1 -> k = 1; goto forbid }
    :: atomic { comes(2) && at(ABORT, 2) && e < 2 -> k = 2; goto forbid }
#if EPOCHS > 2
    :: atomic { comes(3) && at(ABORT, 3) && e < 3 -> k = 3; goto forbid }
#endif

    /* ---- its own death ---------------------------------------------------------------- */
    :: atomic { crashes > 0 && mover[i] -> crashes--; mover[i] = false }
    :: atomic { crashes > 0 -> crashes--; mover[i] = false; running[i] = false;
           /* What was not yet forced to the disk is gone. */
           if :: phase[i] == LANDING -> data[i] = false :: else fi }
    od;

prepare:
    atomic {
        /* Who has a newer epoch to give away has the instance: what is older here is over. */
        assert(phase[i] == NONE || waits || phase[i] == COMMITTED);
        e = k;
        outcome[i] = OPEN;
        data[i] = false;
        mover[i] = false;
        if
        :: phase[i] = LANDING
        :: phase[i] = NONE; over(ABANDONED)
        fi;
        goto end
    }

forbid:
    atomic {
        assert(phase[i] == NONE || waits || phase[i] == COMMITTED);
        e = k;
        phase[i] = NONE;
        over(ABANDONED);
        mover[i] = false;
        goto end
    }
}

#if EPOCHS > 2
#define lose(name) lost(name, 1) lost(name, 2) lost(name, 3)
#else
#define lose(name) lost(name, 1) lost(name, 2)
#endif
#define lost(name, k) \
    :: atomic { losses > 0 && at(name, k) -> at(name, k) = false; losses-- }

proctype network()
{
end:
    do
    lose(PREPARE) lose(READY) lose(REFUSED) lose(CHUNK) lose(STORED) lose(FINISH)
    lose(RECEIVED) lose(COMMIT) lose(DONE) lose(RETURNED) lose(ABORT) lose(INQUIRE)
    od
}

proctype judge()
{
end:
    do
    :: !content -> content = true
    :: atomic { timeout ->
           assert(running[0] + running[1] == 1);
           assert((phase[0] == OWNER && running[0] && phase[1] == NONE) ||
                  (phase[1] == OWNER && running[1] && phase[0] == NONE));
           break }
    od
}

init
{
    byte n;
    atomic {
        for (n : 0 .. SLOTS - 1) { source_of[n] = 2 }
        phase[0] = OWNER; running[0] = true; outcome[0] = LANDED;
        phase[1] = NONE; outcome[1] = OPEN;
        run node(0); run node(1); run network(); run judge()
    }
}
