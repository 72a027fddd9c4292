"""An exit with a guarantee: what `sgl calibrate` measures, fits, certifies and checks.

records   what one question showed: score, answers of both models, costs     (collection.py makes them)
features  a record, or a request that runs, as numbers
fitting   one half of the records -> calibrated probability                  (scikit-learn, stored as numbers)
certify   the other half -> the loosest threshold whose risk is bounded      (Learn-then-Test)
document  all of it as one JSON file, tied to the pair by binding.py
exit_rule the file at work in an engine
drift     the same file against new data; page.py tells people

Answering needs neither scikit-learn nor scipy; only making and checking a calibration does.
"""
