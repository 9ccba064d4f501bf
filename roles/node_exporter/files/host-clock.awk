# Writes how well a host keeps the time, in Prometheus's text format, of what `chronyc -c tracking` says; `now` is the time in seconds.
# Of a daemon that says nothing, or nothing of this form, the clock is not synchronised.

BEGIN { FS = "," }

NF == 14 {
  offset = $5
  # A daemon that has lost its servers goes on to say Normal; it asks each of them once in 17 minutes at least.
  synchronised = $14 != "Not synchronised" && now - $4 < 3 * 3600
  said = $14 != "Not synchronised"
}

END {
  print "# HELP host_clock_synchronised Whether the clock follows one that is right."
  print "# TYPE host_clock_synchronised gauge"
  printf "host_clock_synchronised %d\n", synchronised
  if (said) {
    print "# HELP host_clock_offset_seconds Seconds that the clock is behind what its sources say; of one that is ahead, less than nothing."
    print "# TYPE host_clock_offset_seconds gauge"
    printf "host_clock_offset_seconds %.9f\n", offset
  }
}
