"""Power loss: what a disk may have kept of the recorded file operations is opened again; what was promised is there.

A workload runs on the embedded stores, which are on a disk that writes down every system call that changes it
(`tests.power_loss.recorded_disk`). Power is lost after any of these calls: whatever was not synced by then may be
there, be gone or be torn, each for itself (`tests.power_loss.journal`). The stores are opened on what is left, and
judged by what had been acknowledged (`tests.power_loss.judge`). A disk that lies about its syncs must be found out.

Does not show: what a filesystem loses that was synced, or what a drive does that lies.
"""
